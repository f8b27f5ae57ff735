"""What `rank` plans, `apply_plan` takes, for every net there is: MACs are as planned, removing is setting to zero."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as masks
from zoo import NETS, build, conv

import dynext as dx
from dynext.errors import PlanError
from dynext.graph.macs import count_macs
from dynext.prune.channel_choice import ChannelChoice
from dynext.prune.channels import Channels
from dynext.prune.cutting import inconsistency, sound, zero
from dynext.testing import check_net


def dynamic(model: nn.Module, example: Tensor) -> tuple[dx.DynamicNet, Tensor]:
    net = dx.attach(dx.split(model, example), dx.default_heads(10, hidden=8))
    return net, torch.randn(6, *example.shape[1:], generator=torch.Generator().manual_seed(0))


def kept_promises(net: dx.DynamicNet, x: Tensor, budget: float) -> dx.DynamicNet | None:
    """The net cut to ``budget``, all that a plan promises checked; ``None`` where it is out of reach."""
    try:
        plan = dx.prune.rank(net, budget=budget)
    except PlanError as error:
        if "out of reach" in str(error):
            return None
        raise
    small = dx.prune.apply_plan(net, plan)
    assert count_macs(small.staged, x[:2]) == small.staged.macs == plan.macs <= budget * net.staged.macs
    assert plan.cuts
    masked = Channels(net)
    for cut in plan.cuts:
        zero(masked.group(cut.layer, cut.channels), masked)
    with torch.no_grad():
        wanted = net.all_exits(x)
        torch.testing.assert_close(small.all_exits(x), wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    return small


@pytest.mark.parametrize("name", NETS)
def test_what_is_ranked_can_be_applied(name: str) -> None:
    net, x = dynamic(*NETS[name]())
    small = kept_promises(net, x, 0.5) or kept_promises(net, x, 0.85)
    assert small is not None or name == "root_tensors"  # tensors in no layer would have to go with the channels
    if small is not None:
        check_net(small, x)


class Partial(nn.Module):
    """Layers that share some of their channels: a slice of one is added to another, a chunk is doubled."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.thin = conv(3, 12), conv(3, 4)
        self.middle = nn.Conv2d(6, 6, 3, padding=1)
        self.after = conv(22, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        wide, thin = self.wide(x), self.thin(x)
        first, second = wide.split(6, 1)
        joined = torch.cat([wide, self.middle(first) + second, thin + wide[:, 4:8]], 1)
        return self.head(self.after(joined).mean((2, 3)))


class Twice(nn.Module):
    """A tensor is joined with itself, and joined again under a BatchNorm and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(16)
        self.again = nn.Conv2d(16, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.norm(torch.cat([x, x], 1))
        return self.head(self.last(torch.relu(self.up(x + self.again(x)))).mean((2, 3)))


@pytest.mark.parametrize("kind", [Partial, Twice])
def test_channels_that_are_shared_in_part(kind: Callable[[], nn.Module]) -> None:
    assert kept_promises(*dynamic(*build(kind)), 0.9) is not None


def test_layers_that_are_sound_apart_and_not_together() -> None:
    """A group that can go only as long as others stay is left out of the plan; the others go."""
    net, _ = dynamic(*NETS["plain"]())
    channels = Channels(net)
    trials = [(layer, [0, 2]) for layer in channels.roots()]
    assert sound(net, channels, trials) == trials

    def exclusive(_: object, __: object, asked: list) -> str | None:
        return "no" if {trials[0], trials[1]} <= {(layer, chosen) for layer, chosen in map(tuple, asked)} else None

    trials = [(layer, (0, 2)) for layer, _ in trials]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynext.prune.cutting.inconsistency", exclusive)
        assert sound(net, channels, trials) == [trials[0], *trials[2:]]
    assert "no longer fits" in (inconsistency(net, channels, [(trials[0][0], [99])]) or "")


def test_a_plan_that_leaves_more_than_predicted_takes_more_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    net, _ = dynamic(*NETS["plain"]())
    right = ChannelChoice._cheapest
    monkeypatch.setattr(ChannelChoice, "_cheapest", lambda self, allowed: right(self, 1.2 * allowed))
    assert dx.prune.rank(net, budget=0.6).macs <= 0.6 * net.staged.macs
    monkeypatch.setattr(ChannelChoice, "_cheapest", lambda self, allowed: right(self, 0.99 * self.net.staged.macs))
    with pytest.raises(PlanError, match="budget of 60.0% of the MACs is out of reach: channels that were to leave"):
        dx.prune.rank(net, budget=0.6)


def sequence(*convs: nn.Module) -> nn.Module:
    layers = [layer for conv in convs for layer in (conv, nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def pruned_in_torch(layer: nn.Module) -> nn.Module:
    return masks.l1_unstructured(layer, "weight", 0.3)


WAYS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.parametrize("way", WAYS)
def test_layers_with_computed_weights_keep_their_channels(way: str) -> None:
    def thin(n: int, m: int) -> nn.Conv2d:
        return nn.Conv2d(n, m, 3, padding=1)

    def kind() -> nn.Module:
        return sequence(thin(3, 8), thin(8, 8), thin(8, 8), thin(8, 8))

    net, x = dynamic(*build(kind))  # which works such weights in: here they come afterwards
    for layer in [m for m in net.staged.modules() if isinstance(m, nn.Conv2d)][:2]:
        WAYS[way](layer)
    small = kept_promises(net, x, 0.8)
    assert small is not None
    with pytest.raises(PlanError, match=r"of reach.*the weights of .*body.* are computed .*parametrize.remove_param"):
        dx.prune.rank(net, budget=0.2)
    held = dx.prune.Cut(layer="staged.stages.0.body.0", channels=(1,), of=8)
    with pytest.raises(PlanError, match=r"1 of 8 channels of staged.stages.0.body.0 cannot go: the weights of"):
        dx.prune.apply_plan(net, dx.prune.PruningPlan(cuts=(held,)))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("way", [nn.utils.weight_norm, nn.utils.spectral_norm, pruned_in_torch])
def test_older_forms_of_computed_weights_are_told_too(way: Callable[[nn.Module], nn.Module]) -> None:
    net, _ = dynamic(*NETS["plain"]())
    layer = next(m for m in net.staged.stages[0].modules() if isinstance(m, nn.Conv2d))
    way(layer)
    (name,) = Channels(net).computed
    assert net.get_submodule(name) is layer
    assert not any(name in Channels(net).coupled(root, [0]) for root in Channels(net).roots())
