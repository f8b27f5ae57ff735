"""Heads of a user's own: whatever makes a module for a tap, tried out, counted, cut into parts, refused with a line."""

from __future__ import annotations

import copy
import functools
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from own_heads import HEADS, Averaged, Distances, InParts, Scaled
from torch import Tensor, nn
from zoo import NETS

import dynext as dx
from dynext.net.features import cache_features, head_logits
from dynext.seeding import generator, seeded
from dynext.testing import ConformanceError, check_head, check_net

MODEL, EXAMPLE = NETS["residual"]()
STAGED = dx.split(MODEL, EXAMPLE)
TAPS = [tuple(stage.live_shapes[stage.tap]) for stage in STAGED.stages[:-1]]
X = torch.randn(8, *EXAMPLE.shape[1:], generator=generator(0))


def attached(head: object, **options: object) -> dx.DynamicNet:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch counts no MACs")
        return dx.attach(STAGED, head, **options)


@pytest.mark.parametrize("kind", HEADS)
def test_any_module_makes_an_exit_that_keeps_every_promise(kind: str) -> None:
    net = attached(HEADS[kind])
    check_net(net, X)
    for exit, tap in zip(net.exits, net.taps(X)[0], strict=True):
        assert exit.macs > 0
        torch.testing.assert_close(exit(tap), exit.own.fresh().eval()(tap))
    cached = head_logits(net, cache_features(net, None, dx.data.Samples(pixels=X.sigmoid(), spec=SPEC), progress=False))
    assert cached.shape == (8, net.num_exits, 10)


SPEC = dx.InputSpec(shape=tuple(EXAMPLE.shape[1:]), mean=(0.5,) * 3, std=(0.25,) * 3)


def test_macs_are_counted() -> None:
    assert attached(Averaged).exits[0].macs == 36 * 12 * 8 * 9 + 120  # 3x3 on 8 channels at 6x6 places, then linear
    with pytest.warns(UserWarning, match="torch counts no MACs of the head after .* the 80 numbers"):
        net = dx.attach(STAGED, Distances, at=[0])
    assert net.exits[0].macs == 80

    def recurrent(tap: tuple[int, ...]) -> nn.Module:
        class OverRows(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.lstm, self.fc = nn.LSTM(8, 5, batch_first=True), nn.Linear(5, 10)

            def forward(self, x: Tensor) -> Tensor:
                return self.fc(self.lstm(x.mean(3).transpose(1, 2))[0][:, -1])

        return OverRows()

    assert attached(recurrent, at=[0]).exits[0].macs == 8 * 4 * 5 * (8 + 5) + 50


def test_everything_that_can_be_given() -> None:
    shared = functools.partial(Averaged, num_classes=10, width=4)
    modules = [shared(tap) for tap in TAPS]
    for given in (Averaged, shared, lambda tap: Averaged(tap, 10), modules, nn.ModuleList(modules), "pooled"):
        assert attached(given).num_exits == len(TAPS) + 1
    assert attached(modules[0], at=[0]).num_exits == 2
    name = STAGED.stages[1].name
    assert attached({name: Averaged}).exit_names == (name, "output")
    assert attached({name: modules[1]}, at=[name]).exit_names == (name, "output")
    assert attached({1: Averaged, 0: modules[0]}).num_exits == 3
    assert attached("own_heads:Averaged").exits[0].spec["factory"] == "own_heads:Averaged"
    assert attached([dx.default_heads(10), *modules[1:]]).exits[0].own is None


def test_modules_are_copied_and_follow_the_seed() -> None:
    modules = [Averaged(tap, 10) for tap in TAPS]
    before = copy.deepcopy(modules[0].state_dict())
    net = dx.attach(STAGED, modules)
    with torch.no_grad():
        for parameter in net.exits[0].parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in modules[0].state_dict().items())
    assert modules[0].act.inplace
    assert modules[0].training
    same, other = (dx.attach(STAGED, Averaged, seed=seed).exits[0].classifier.weight for seed in (0, 1))
    assert torch.equal(same, dx.attach(STAGED, Averaged).exits[0].classifier.weight)
    assert not torch.equal(same, other)


def test_an_activation_in_place_spoils_no_tap() -> None:
    net = dx.attach(STAGED, lambda tap: nn.Sequential(nn.ReLU(True), nn.Flatten(), nn.Linear(512, 10)), at=[0])
    tap = net.taps(X)[0][0] - 1
    kept = tap.clone()
    net.exits[0](tap)
    assert torch.equal(tap, kept)


def test_parts() -> None:
    net = attached(Averaged, at=[0])
    assert isinstance(net.exits[0].classifier, nn.Linear)
    assert net.exits[0].embeds
    tap = net.taps(X)[0][0]
    assert net.exits[0].embed(tap).shape == (8, 12)
    net.exits[0].train()
    assert not torch.equal(net.exits[0](tap), net.exits[0](tap))  # its dropout is still there
    assert isinstance(attached(InParts, at=[0]).exits[0].reduce, nn.AvgPool2d)
    assert not attached(Scaled, at=[0]).exits[0].embeds

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.again = nn.Linear(10, 10), nn.Linear(10, 10)
            self.again.weight = self.fc.weight
            self.first = nn.Linear(512, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.again(self.fc(self.first(x.flatten(1))))

    assert not attached(lambda tap: Tied(), at=[0]).exits[0].embeds  # the weight stays shared


class OfExit(dx.heads.Exit):
    pass


class Wants(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)


class Channels(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 10, 1)


def two(channels: int, classes: int) -> nn.Module:
    return nn.Linear(channels, classes)


def gives(module: nn.Module) -> object:
    return lambda tap: copy.deepcopy(module)


class Odd(nn.Module):
    def __init__(self, function: object, weight: bool = True) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 10) if weight else nn.Identity()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def logits(m: Odd, x: Tensor) -> Tensor:
    return m.fc(x.mean((2, 3)))


GUESSES: dict[str, tuple[object, str]] = {
    "channels and classes": (two, "two takes (channels, classes)*dx.attach(staged, lambda tap: two(tap[0], 10))"),
    "a class of two": (Wants, "Wants takes*dx.attach(staged, lambda tap: Wants(tap[0], 10))"),
    "a class of one": (Channels, "Channels((8, 8, 8)) fails*dx.attach(staged, lambda tap: Channels(tap[0]))"),
    "a number": (10, "heads=10 is a number*dx.attach(staged, dx.default_heads(10))"),
    "None from a lambda": (lambda tap: None, "the lambda returns None*nn.Module"),
    "a subclass of Exit": (OfExit, "OfExit is a kind of Exit*class OfExit(nn.Module)"),
    "an exit": (lambda tap: dx.attach(STAGED, Averaged, at=[0]).exits[0], "gives an Exit*nn.Module"),
    "default_heads uncalled": (dx.default_heads, "called first*dx.attach(staged, dx.default_heads(10))"),
    "pooled_heads uncalled": (dx.heads.pooled_heads, "called first*dx.attach(staged, dx.heads.pooled_heads(10))"),
    "a class out of a lambda": (lambda tap: Averaged, "returns the class Averaged*lambda tap: Averaged(tap)"),
    "heads out of heads": (lambda tap: dx.default_heads(10), "returns a function; call it"),
    "no argument": (lambda: nn.Linear(8, 10), "takes no tap"),
    "one for many": (nn.Linear(8, 10), "one Linear for 4 exits*lambda tap: Linear(...)"),
    "the same four times": ([HEAD := Averaged(TAPS[0], 10)] * 4, "same module is given for several exits"),
    "too few": ([HEAD], "1 heads for 4 exits"),
    "the JSON of a head": (dx.default_heads(10)(TAPS[0]), "JSON of one head*dx.default_heads(10)"),
    "another stage": ({"layer9": Averaged}, "no exit can stand after 'layer9'"),
    "no such name": ("poolde", "did you mean 'pooled'?"),
    "no such module": ("nowhere:head", "'nowhere:head' cannot be imported"),
    "no such function": ("own_heads:Averagd", "did you mean 'Averaged'?"),
    "too few classes": (lambda tap: Averaged(tap, 7), "[3, 7] for 3 samples, expected [3, 10]*nn.Linear(7, 10)"),
    "a map": (gives(nn.LazyConv2d(10, 1)), "[3, 10, 8, 8]*nn.AdaptiveAvgPool2d(1), nn.Flatten()"),
    "a pair": (gives(Odd(lambda m, x: (logits(m, x), x))), "gives a tuple, not a tensor"),
    "squeezed": (gives(Odd(lambda m, x: logits(m, x).squeeze())), "answers a sample alone otherwise"),
    "of the batch": (gives(Odd(lambda m, x: logits(m, x - x.mean(0)))), "answers a sample alone otherwise"),
    "by chance": (gives(Odd(lambda m, x: F.dropout(logits(m, x)))), "otherwise the second time*self.training"),
    "in place": (gives(Odd(lambda m, x: logits(m, x.add_(1)))), "changes the tap*x.clone()"),
    "nothing to learn": (gives(Odd(lambda m, x: x.mean((2, 3)).repeat(1, 2)[:, :10], False)), "has no parameters"),
    "another tap": (gives(Averaged((5, 8, 8), 10)), "on a tap (8, 8, 8) fails"),
    "classes": (gives(Odd(lambda m, x: logits(m, x).long())), "give logits, floats"),
}


@pytest.mark.parametrize("guess", GUESSES)
def test_a_wrong_guess_gets_the_right_line(guess: str) -> None:
    given, told = GUESSES[guess]
    with pytest.raises(dx.errors.SplitError, match=".*".join(map(re.escape, told.split("*")))):
        dx.attach(STAGED, given)


def test_cosine_heads_take_heads_of_ours() -> None:
    with pytest.raises(dx.errors.SplitError, match="cosine_heads was given heads that make a Averaged"):
        dx.attach(STAGED, dx.heads.cosine_heads(lambda tap: Averaged(tap, 10)))


@pytest.mark.parametrize("kind", [*HEADS, "ours"])
def test_the_kit_takes_what_conforms(kind: str) -> None:
    check_head(HEADS.get(kind, dx.default_heads(10)), tap_shape=(8, 8, 8), num_classes=10)


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (lambda tap: None, "returns None"),
        (gives(Odd(lambda m, x: F.linear(x.mean((2, 3)), m.fc.weight))), "fc.bias play no part"),
        (lambda tap: Odd(lambda m, x: logits(m, x) * m.own).eval() and _stateful(), "answers otherwise"),
        (lambda tap: Averaged(tap, 10, int(torch.randint(5, 50, ()))), "other parameters"),
        (gives(Odd(lambda m, x: logits(m, x) / 0)), "NaN or infinity"),
    ],
)  # fmt: skip
def test_the_kit_names_what_does_not(head: object, told: str) -> None:
    with seeded(3), pytest.raises(ConformanceError, match=told):
        check_head(head, tap_shape=(8, 8, 8), num_classes=10)


def _stateful() -> nn.Module:
    """Draws a factor that is no parameter."""
    factor = 1 + torch.rand(())
    return Odd(lambda m, x: factor * logits(m, x))


def test_an_exit_that_tells_wrong_macs_is_caught() -> None:
    net = dx.attach(STAGED, Averaged)
    net.exits[1].macs = 0
    with pytest.raises(ConformanceError, match=r"says 0 MACs and spends \d"):
        check_net(net, X)
