"""Control flow in ``forward``: followed where shapes alone decide it, else refused or kept whole."""

import math

import pytest
import torch
from torch import Tensor, nn
from zoo import build, conv

from dynext.errors import SplitError
from dynext.graph.conditions import NUM_SAMPLES
from dynext.graph.private import private_copy
from dynext.graph.split import split
from dynext.graph.trace import trace


class Decides(nn.Module):
    """A net whose ``forward`` takes one of two ways, as ``condition`` says of what lies between its layers."""

    def __init__(self, condition) -> None:
        super().__init__()
        self.first, self.second, self.head = conv(3, 8), conv(8, 8), nn.Linear(8, 10)
        self.token = nn.Parameter(torch.ones(1, 8, 1, 1))
        self.condition = condition

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) * self.token
        if self.condition(self, x):
            x = x * 2
        return self.head(self.second(x).mean((2, 3)))


def sum_in_a_loop(net, x):
    total = 0
    for size in x.shape[1:]:
        total = total + size
    return total == 24


SHAPES = {
    "true": (True, lambda net, x: x.shape[2] == 8),
    "false": (False, lambda net, x: x.size(1) > 8),
    "of a parameter": (True, lambda net, x: net.token.shape[1] == x.shape[1]),
    "parity": (False, lambda net, x: x.shape[-1] % 2),
    "dimensions": (True, lambda net, x: x.dim() == 4 and x.ndim == 4),
    "behind a module": (True, lambda net, x: net.second(x).shape[1:] == x.shape[1:]),
    "of a list": (True, lambda net, x: len(x.shape) == 4 and len(x.chunk(2, 1)) == 2),
    "one of several tensors": (True, lambda net, x: x.split(4, 1)[0].shape[1] == 4),
    "loop": (True, sum_in_a_loop),
    "of both batches": (True, lambda net, x: x.shape[0] == net.second(x).shape[0]),
    "type": (True, lambda net, x: x.dtype == torch.float32),
    "type in a set": (True, lambda net, x: x.dtype in {torch.float32, torch.float64}),
    "type as a key": (False, lambda net, x: {torch.float32: 0, torch.float16: 1}[x.dtype]),
    "types that differ": (False, lambda net, x: x.dtype != net.token.dtype),
    "kind of type": (True, lambda net, x: x.dtype.is_floating_point and torch.is_floating_point(x)),
    "device": (False, lambda net, x: x.is_cuda or x.device != net.token.device or x.device.type == "cuda"),
    "gradient": (False, lambda net, x: x.requires_grad and net.training),
    "strides": (True, lambda net, x: x.is_contiguous() and x.stride(-1) == 1),
    "a tensor at all": (True, lambda net, x: isinstance(x, Tensor) and torch.is_tensor(x)),
    "no number": (False, lambda net, x: isinstance(x, int | float)),
    "math": (True, lambda net, x: math.isqrt(x.shape[-1] * x.size(2)) == 8 and len(range(x.shape[1])) == 8),
    "shape as a tuple": (True, lambda net, x: x.shape[-2:] == (8, 8) and x.shape[1:].numel() == 512),
    "text": (True, lambda net, x: f"{x.shape[1]} channels" == "8 channels"),
    "batch beyond all numbers": (True, lambda net, x: x.shape[0] > 0 and len(x) >= 1),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_decide(name):
    taken, condition = SHAPES[name]
    model, x = build(lambda: Decides(condition))
    staged = split(model, x)
    with torch.no_grad():
        traced = trace(private_copy(model), x)
    assert ("mul_1" in [node.name for node in traced.graph.nodes]) is taken
    assert len(staged.cuts) >= 1
    torch.testing.assert_close(staged(x), model(x), rtol=0, atol=0)
    torch.testing.assert_close(staged(x[:1]), model(x[:1]), rtol=0, atol=1e-6)


SAMPLES_OR_VALUES = {
    "batch": (lambda net, x: x.shape[0] == 2, r"node 'eq'.* number of samples \(True for 2, False for 3"),
    "single sample": (lambda net, x: x.shape[0] == 1, r"number of samples .*True for 1"),
    "large batch": (lambda net, x: len(x.shape) and x.shape[0] > 64, r"number of samples .*True for 1009"),
    "length of a tensor": (lambda net, x: len(x) == 2, r"number of samples \(True for 2, False for 3"),
    "tensor": (lambda net, x: x.sum() > 0, "node 'gt' is a tensor"),
    "item": (lambda net, x: x.sum().item() > 0, r"node 'item' needs more than shapes"),
    "all of it": (lambda net, x: torch.equal(x, x), "node 'equal' needs more than shapes"),
}


@pytest.mark.parametrize("name", SAMPLES_OR_VALUES)
def test_samples_and_values_do_not(name):
    condition, says = SAMPLES_OR_VALUES[name]
    model, x = build(lambda: Decides(condition))
    with pytest.raises(SplitError, match=rf"Decides cannot be traced.*test_conditions.py, line \d+.*{says}.*by hand"):
        split(model, x)


def test_the_line_is_quoted():
    model, x = build(lambda: Decides(lambda net, x: x.sum() > 0))
    with pytest.raises(SplitError, match=r"`if self.condition\(self, x\):` \(test_conditions.py, line"):
        split(model, x)


@pytest.mark.parametrize("decide", [lambda x: x.shape[0] == 1, lambda x: bool(x.isnan().any())])
def test_a_small_module_that_decides_is_kept_whole_and_goes_on_deciding(decide):
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return x * 3 if decide(x) else self.act(x)

    model, x = build(lambda: Decides(lambda net, x: net.small(x).shape[1] == 8))
    model.small, model.second = Small(), nn.Sequential(model.second, Small())
    assert trace(private_copy(model), x).meta["whole"] == ("small", "second.1")
    if decide(torch.ones(1, 8, 1, 1)):
        with pytest.raises(SplitError, match=r"otherwise alone than among 3.*second.1 \(Small\)"):
            split(model, x)
        return
    staged = split(model, x)
    for some in (x, x[:1]):
        torch.testing.assert_close(staged(some), model(some), rtol=0, atol=1e-6)


def test_a_wrapper_does_not_make_the_net_one_leaf():
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Decides(lambda net, x: x.shape[1] == 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x / 2)

    model, x = build(Wrapper)
    staged = split(model, x)
    assert staged.cuts
    assert all(cut.startswith(("net.", "mul")) for cut in staged.cuts)
    torch.testing.assert_close(staged(x), model(x), rtol=0, atol=0)


def test_nothing_is_kept_without_content():
    class Keeps(nn.Module):
        """Keeps what it computed last, as tables of positions do."""

        def forward(self, x: Tensor) -> Tensor:
            self.last = x.detach() + 0
            return x

    model, x = build(lambda: Decides(lambda net, x: net.keeps(x).shape[1] == 8))
    model.keeps = Keeps()
    staged = split(model, x)
    torch.testing.assert_close(staged(x), model(x), rtol=0, atol=0)
    kept = [module.last for module in staged.modules() if hasattr(module, "last")]
    assert all(type(last) is Tensor for last in kept)


def test_the_numbers_of_samples_hold_one_and_many():
    assert {1, 2, 3} < set(NUM_SAMPLES)
    assert max(NUM_SAMPLES) > 1000
