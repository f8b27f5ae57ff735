"""Our own copy of a model: what training and debugging leave on a net goes into plain weights, or stays behind."""

import copy
import functools
import io
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from zoo import build, conv

import dynext as dx
from dynext.errors import SplitError
from dynext.graph import stages_by_hand
from dynext.graph.private import private_copy
from dynext.graph.split import split


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = conv(3, 8), conv(8, 8), conv(8, 8)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.third(self.second(self.first(x))))


def mask(net: Net) -> None:
    prune.l1_unstructured(net.second[0], "weight", amount=0.5)
    prune.random_unstructured(net.second[0], "weight", amount=0.3)
    prune.ln_structured(net.third[0], "weight", amount=0.25, n=2, dim=0)
    prune.l1_unstructured(net.head[2], "bias", amount=0.5)


def mask_globally(net: Net) -> None:
    prune.global_unstructured(
        [(net.second[0], "weight"), (net.third[0], "weight")], pruning_method=prune.L1Unstructured, amount=0.5
    )


def norm_weights(net: Net) -> None:
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(net.second[0])
    with torch.no_grad():
        net.second[0].weight_g.mul_(1.5)  # the weight itself is stale until the next call


def norm_spectra(net: Net) -> None:
    for part in (net.second[0], net.head[2]):
        nn.utils.spectral_norm(part)
    net.train()(torch.randn(2, 3, 8, 8))
    net.eval()


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return (weight + weight.flip(-1)) / 2


def parametrized(net: Net) -> None:
    parametrizations.weight_norm(net.second[0])
    parametrizations.spectral_norm(net.third[0])
    parametrize.register_parametrization(net.third[0], "weight", Symmetric())
    parametrizations.orthogonal(net.head[2])


class Scaled:
    """A hook of the kind of equalized learning rates: the weight is computed before each call."""

    def __call__(self, module: nn.Module, given: Any) -> None:
        module.weight = module.weight_orig * 0.5  # type: ignore[operator]


def scale(net: Net) -> None:
    layer = net.second[0]
    layer.register_parameter("weight_orig", nn.Parameter(layer.weight.detach().clone()))
    del layer._parameters["weight"]
    layer.weight = layer.weight_orig * 0.5
    layer.register_forward_pre_hook(Scaled())


COMPUTED = {
    "masks": mask,
    "global masks": mask_globally,
    "weight norm": norm_weights,
    "spectral norm": norm_spectra,
    "parametrizations": parametrized,
    "weights of a hook": scale,
}


def noted(model: nn.Module) -> list[Any]:
    """What must be the same of a model afterwards."""
    return [
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        [(type(module), module.training, [*vars(module)]) for module in model.modules()],
        [[*module._forward_hooks.values(), *module._forward_pre_hooks.values()] for module in model.modules()],
    ]


def assert_the_same(model: nn.Module, before: list[Any]) -> None:
    after = noted(model)
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert after[1:] == before[1:]


@pytest.mark.parametrize("way", ["split", "by hand"])
@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weights_become_plain_ones(name: str, way: str) -> None:
    model, x = build(Net)
    COMPUTED[name](model)
    before = noted(model)
    if way == "split":
        staged = split(model, x)
    else:
        staged = stages_by_hand([nn.Sequential(model.first, model.second), nn.Sequential(model.third, model.head)], x)
    assert_the_same(model, before)
    torch.testing.assert_close(staged(x), model(x), rtol=1e-5, atol=1e-6)
    names = {name.rpartition(".")[2] for name in staged.state_dict()} - {
        "weight_orig" if name.startswith("weights") else ""
    }
    assert names <= {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert all(parameter.requires_grad for parameter in staged.parameters())
    moved = copy.deepcopy(staged).double()
    torch.testing.assert_close(moved(x.double()).float(), model(x), rtol=1e-4, atol=1e-5)


def test_weights_that_were_frozen_stay_frozen() -> None:
    model, _ = build(Net)
    mask(model.requires_grad_(False))
    assert not any(parameter.requires_grad for parameter in private_copy(model).parameters())


def test_saved_and_loaded_with_the_masked_net_and_with_a_plain_one(tmp_path) -> None:
    model, x = build(Net)
    mask(model)
    staged = split(model, x)
    net = dx.attach(staged, dx.default_heads(10)).eval()
    policy = dx.Policy(threshold_e=(*[1.0] * len(staged.cuts), 0.0), temperature_e=(1.0,) * len(staged.stages))
    dx.save(net, tmp_path / "net", policy=policy, spec=dx.InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3))
    for given in (model, build(Net)[0], nn.DataParallel(model)):
        torch.testing.assert_close(dx.load(tmp_path / "net", model=given).net(x), model(x), rtol=0, atol=0)


class Owner:
    """Something that a model may hold: parts that can be copied, and one that cannot."""

    def __init__(self, model: nn.Module) -> None:
        self.layer, self.lock, self.counts = model.get_submodule("second"), threading.Lock(), [0]

    def __call__(self, x: Tensor) -> Tensor:
        with self.lock:
            self.counts.append(len(self.counts))
            return self.layer(x)


HELD: dict[str, Callable[[Net], Any]] = {
    "lock": lambda net: threading.Lock(),
    "lock in a list": lambda net: [{"a": (threading.RLock(), torch.zeros(2))}],
    "generator": lambda net: torch.Generator(),
    "python generator": lambda net: (i for i in range(3)),
    "logger": lambda net: logging.getLogger("tests"),
    "file": lambda net: Path(__file__).open(),  # noqa: SIM115
    "module of Python": lambda net: torch,
    "lambda": lambda net: lambda x: x + 1,
    "its own method": lambda net: functools.partial(net.forward),
    "thread": lambda net: threading.Thread(target=print),
    "local data": lambda net: threading.local(),
    "owner": Owner,
    "features": lambda net: net.first(torch.zeros(2, 3, 8, 8)),
    "features in a dict": lambda net: {"first": [net.first(torch.zeros(2, 3, 8, 8))]},
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", HELD)
def test_whatever_a_model_holds_it_is_split(name: str) -> None:
    model, x = build(Net)
    model.held = HELD[name](model)
    before = noted(model)
    staged = split(model, x)
    assert_the_same(model, before)
    assert torch.equal(staged(x), model(x))
    copied = private_copy(model)
    assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in model.parameters()}
    if name == "owner":
        assert copied.held is not model.held
        assert copied.held.layer is copied.second
    if name == "generator":
        assert copied.held is not model.held
        assert torch.equal(copied.held.get_state(), model.held.get_state())
    if name.startswith("features"):
        assert model.held is not copied.held


class Uninitialized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = conv(3, 8), nn.LazyLinear(10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).mean((2, 3)))


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_weights_that_do_not_exist_yet_are_asked_for() -> None:
    with pytest.raises(SplitError, match="Uninitialized has weights without a shape yet; call it once on an example"):
        split(Uninitialized(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(SplitError, match="the model is a dict; give a torch.nn.Module"):
        split({}, torch.zeros(1, 3, 8, 8))


class Collector:
    """Collects features as an object, with a file and a lock on it."""

    def __init__(self) -> None:
        self.features: list[Tensor] = []
        self.lock, self.file = threading.Lock(), io.StringIO()

    def collect(self, module: nn.Module, given: Any, out: Tensor) -> None:
        with self.lock:
            self.features.append(out)
            self.file.write(str(out.shape))


SEEN: list[Tensor] = []


def collect_globally(module: nn.Module, given: Any, out: Tensor) -> None:
    SEEN.append(out)


def watching(net: Net, seen: list[Any], collector: Collector, file: Any) -> None:
    """Hooks of all kinds that only watch."""
    lock = threading.Lock()

    def locked(module: nn.Module, given: Any, out: Tensor) -> None:
        with lock:
            seen.append(out.detach())
            file.write("called\n")

    def keeping(name: str, module: nn.Module, given: Any, out: Tensor) -> None:
        seen.append((name, out))
        net.kept = out

    net.first.register_forward_hook(locked)
    net.first[0].register_forward_hook(lambda module, given, out: seen.append(out))
    net.second.register_forward_hook(collector.collect)
    net.second[1].register_forward_hook(functools.partial(keeping, "bn"))
    net.third.register_forward_hook(collect_globally)
    net.third[0].register_forward_pre_hook(lambda module, given: given)
    net.third[0].register_forward_pre_hook(lambda module, given, named: (given, named), with_kwargs=True)
    net.head[2].register_forward_hook(lambda module, given, named, out: out.clone(), with_kwargs=True)
    net.register_forward_hook(lambda module, given, out: seen.append(net(given[0]) if len(seen) > 99 else out))
    net.third.register_full_backward_hook(lambda module, given, out: seen.append(given))


@pytest.mark.parametrize("way", ["split", "by hand"])
def test_hooks_that_watch_stay_behind_and_are_not_called(way: str, tmp_path) -> None:
    model, x = build(Net)
    seen: list[Any] = []
    collector = Collector()
    with (tmp_path / "log").open("w") as file:
        watching(model, seen, collector, file)
        model(x)
        before, count = noted(model), (len(seen), len(collector.features), len(SEEN))
        if way == "split":
            staged = split(model, x)
        else:
            parts = [nn.Sequential(model.first, model.second), nn.Sequential(model.third, model.head)]
            staged = stages_by_hand(parts, x)
        staged(x)
        assert (len(seen), len(collector.features), len(SEEN)) == count
    assert_the_same(model, before)
    assert (tmp_path / "log").read_text() == "called\n"
    assert collector.file.getvalue() == "torch.Size([2, 8, 8, 8])"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in staged.modules())
    plain, _ = build(Net)
    torch.testing.assert_close(copy.deepcopy(staged)(x), plain(x), rtol=0, atol=0)


def halved(module: nn.Module, given: Any, out: Tensor) -> Tensor:
    return out * 0.5


def shifted(module: nn.Module, given: Any) -> Any:
    return given[0] + 1


def in_place(module: nn.Module, given: Any, out: Tensor) -> None:
    out.mul_(0.5)


def named(module: nn.Module, given: Any, named: Any) -> Any:
    return (given[0] + 1,), named


CHANGING: dict[str, Callable[[nn.Module], Any]] = {
    "halved": lambda module: module.register_forward_hook(halved),
    "shifted": lambda module: module.register_forward_pre_hook(shifted),
    "in_place": lambda module: module.register_forward_hook(in_place),
    "named": lambda module: module.register_forward_pre_hook(named, with_kwargs=True),
}


@pytest.mark.parametrize("path", ["second", "second.0", "second.1", ""])
@pytest.mark.parametrize("name", CHANGING)
def test_hooks_that_change_something_are_refused_and_kept_by_hand(name: str, path: str) -> None:
    model, x = build(Net)
    CHANGING[name](model.get_submodule(path))
    with pytest.raises(SplitError, match=f"hook {name} on {path or 'the model itself'} changes .*stages_by_hand"):
        split(model, x)
    if path:
        staged = stages_by_hand([model.first, model.second, model.third, model.head], x)
        torch.testing.assert_close(staged(x), model(x), rtol=0, atol=0)
