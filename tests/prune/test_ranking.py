"""Ranking: what is worth least goes first, by every measure, and what cannot be ranked is refused in words."""

import pytest
import torch
from methods import METHODS, SPEC, setting
from zoo import NETS

import dynext as dx
from dynext.errors import PlanError
from dynext.prune.apply import smaller
from dynext.prune.channel_worth import attention_by_layer


def dynamic(name: str, **options: object) -> tuple[dx.DynamicNet, torch.Tensor]:
    model, example = NETS[name]()
    net = dx.attach(dx.split(model, example, **options), dx.default_heads(10, hidden=8))
    return net, torch.randn(12, *example.shape[1:], generator=torch.Generator().manual_seed(0))


def grouped() -> dx.DynamicNet:
    """A grouped convolution behind one whose channels 0 and 4, one of each group, are worth nothing."""
    with dx.seeded(0):
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(),
            torch.nn.Conv2d(8, 8, 3, padding=1, groups=2), torch.nn.ReLU(),
            torch.nn.Conv2d(8, 12, 1), torch.nn.ReLU(), torch.nn.Conv2d(12, 12, 1), torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(12, 10),
        ).eval()  # fmt: skip
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias, model[2].weight, model[2].bias):
            tensor[[0, 4]] *= 1e-3
    return dx.attach(dx.split(model, torch.zeros(1, 3, 8, 8), after=["4"]), dx.heads.pooled_heads(10))


def test_grouped_convolutions_lose_inputs_as_predicted() -> None:
    net = grouped()
    plan = dx.prune.rank(net, budget=0.75)
    assert (0, 4) in [cut.channels for cut in plan.cuts if cut.layer == "staged.stages.0.body.0"]
    small = dx.prune.apply_plan(net, plan)
    (conv,) = (m for m in small.modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1)
    assert (conv.groups, conv.in_channels, conv.weight.shape[1]) == (2, 6, 3)
    assert small.staged.macs == plan.macs <= 0.75 * net.staged.macs


def test_a_dead_group_is_worth_nothing() -> None:
    net, samples = setting(METHODS["joint"], n=16)
    layer = next(name for name, m in net.named_modules() if name.endswith("conv1.0"))
    with torch.no_grad():
        for module in (net.get_submodule(layer), net.get_submodule(layer[:-1] + "1")):
            for tensor in module.parameters():
                tensor.zero_()
    plan = dx.prune.rank(net, budget=0.7, by="taylor", source=samples)
    assert [len(cut.channels) for cut in plan.cuts if cut.layer == layer] == [7]


def test_masks_go_by_the_names_of_stages_where_blocks_are_gone() -> None:
    net, x = dynamic("residual", granularity="block")
    auxiliary, names = dx.prune.lend_attention(net), [stage.name for stage in net.staged.stages]
    gone = names[net.staged.skippable[0]]
    small = smaller(net, exits=(gone,), blocks=(gone,))
    whole, left = attention_by_layer(net, auxiliary, x), attention_by_layer(small, auxiliary, x)
    for s, stage in enumerate(small.staged.stages):
        assert torch.equal(left(f"staged.stages.{s}.body"), whole(f"staged.stages.{names.index(stage.name)}.body"))
    other = dx.prune.lend_attention(dynamic("plain")[0])
    samples = dx.data.Samples(pixels=torch.rand(4, 3, 8, 8), spec=SPEC)
    with pytest.raises(PlanError, match="auxiliary= was made of another net: it has no stage"):
        dx.prune.rank(net, budget=0.8, by="attention", source=samples, auxiliary=other)


def test_samples_to_rank_by_are_checked_first() -> None:
    net, samples = setting(METHODS["joint"], n=4)
    gray = dx.data.Samples(pixels=torch.rand(4, 1, 8, 8), spec=dx.InputSpec(shape=(1, 8, 8), mean=(0.5,), std=(0.5,)))
    with pytest.raises(dx.errors.SourceError, match="no samples"):
        dx.prune.rank(net, budget=0.8, by="taylor", source=samples.subset(torch.arange(0)))
    with pytest.raises(dx.errors.SourceError, match=r"samples of shape \(1, 8, 8\); the model expects \(3, 8, 8\)"):
        dx.prune.rank(net, budget=0.8, by="taylor", source=gray)
    with pytest.raises(PlanError, match="rows_per_step 0"):
        dx.prune.rank(net, budget=0.8, by="taylor", source=samples, rows_per_step=0)
    with pytest.raises(PlanError, match="this net has none; give by='magnitude'"):
        dx.prune.rank(grouped(), budget=0.8, by="bn")
    with pytest.raises(PlanError, match="call dx.prune.rank"):
        dx.prune.make_smaller(net, samples, remove=dx.prune.Removal(budget=0.8, by="attention"))
    with pytest.raises(PlanError, match="split with granularity='block'"):
        dx.prune.rank(net, budget=0.8, source=samples, blocks=9)


def test_channels_that_cannot_be_followed_are_refused_where_some_must_go(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = dynamic("plain")

    def failing(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("torch_pruning.DependencyGraph.build_dependency", failing)
    with pytest.raises(PlanError, match=r"cannot follow this net's channels \(ZeroDivisionError: by zero\)"):
        dx.prune.rank(net, budget=0.8)
    plan = dx.prune.rank(net, budget=1.0)
    assert torch.equal(dx.prune.apply_plan(net, plan).all_exits(x), net.all_exits(x))


@pytest.mark.parametrize("by", ["bn", "taylor", "attention"])
def test_every_way_of_ranking_keeps_what_it_should(by: str) -> None:
    """One channel of a layer is made worthless in every way there is: it must be the first to go."""
    net, samples = setting(METHODS["joint"], n=32)
    auxiliary = dx.prune.lend_attention(net)
    layer = next(name for name, m in net.named_modules() if name.endswith("conv1.0"))
    conv, norm = net.get_submodule(layer), net.get_submodule(layer[:-1] + "1")
    with torch.no_grad():
        conv.weight[3], norm.weight[3], norm.bias[3], norm.running_mean[3] = 1e-5, 1e-5, 0.0, 0.0
    gradients = [p.grad for p in net.parameters()]
    plan = dx.prune.rank(net, budget=0.7, by=by, source=samples, auxiliary=auxiliary)
    assert gradients == [p.grad for p in net.parameters()]
    assert plan.by == by
    assert 3 in next(cut for cut in plan.cuts if cut.layer == layer).channels
    assert f"ranked by {by}" in str(plan)
