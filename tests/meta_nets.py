"""Nets for tasks: one without norms and without kinks, those of the zoo; samples for them; their meta-losses."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import nn
from torch.testing import assert_close
from zoo import NETS as ZOO

import dynext as dx
from dynext.meta.exit_tasks import separate
from dynext.meta.inner import InnerLoop
from dynext.meta.loss import MetaLoss
from dynext.seeding import generator, seeded

EpisodeTensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class Smooth(nn.Module):
    """Convolutions and tanh: gradients that finite differences can be held against."""

    def __init__(self, norm: Callable[[int], nn.Module] = lambda _: nn.Identity()) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), norm(4), nn.Tanh())
        self.second = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), norm(6), nn.Tanh())
        self.linear = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.second(self.first(x)).mean((2, 3)))


def smooth_net(
    norm: Callable[[int], nn.Module] = lambda _: nn.Identity(),
    heads: Callable[[tuple[int, ...]], dict[str, object]] | None = None,
) -> dx.DynamicNet:
    """Two exits and the last, three classes, float64; heads without kinks, BatchNorm or pooling of maxima."""
    with seeded(0):
        model = Smooth(norm).eval()
    net = dx.attach(dx.split(model, torch.zeros(1, 3, 8, 8), after=["first", "second"]), heads or flat_heads)
    return net.double()


def flat_heads(tap: tuple[int, ...]) -> dict[str, object]:
    return {"kind": "flat", "tap": list(tap), "num_classes": 3, "hidden": 4}


def zoo_net(name: str, num_classes: int = 10) -> dx.DynamicNet:
    """A net of the zoo with two early exits, float64."""
    model, example = ZOO[name]()
    return dx.attach(dx.split(model, example, after=[0.3, 0.6]), dx.default_heads(num_classes, hidden=4)).double()


NETS = {
    "smooth": cache(smooth_net),
    "batch norm": cache(lambda: smooth_net(nn.BatchNorm2d)),
    "residual": cache(lambda: zoo_net("residual")),
    "attention": cache(lambda: zoo_net("vit_like")),
    "several live tensors": cache(lambda: zoo_net("unet_like")),
    "shared weights": cache(lambda: zoo_net("shared_weights")),
}
"""Each is built once: no test changes one (`test_no_flag_buffer_or_generator_is_touched`)."""


def episode_tensors(num_classes: int, support: int = 6, query: int = 9, seed: int = 0) -> EpisodeTensors:
    """Support and query samples ``[b 3 8 8]`` and their labels, as `MetaLoss` takes them."""
    draw = generator(seed)

    def half(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(count, 3, 8, 8, generator=draw, dtype=torch.float64)
        return x, torch.arange(count) % num_classes

    return (*half(support), *half(query))


def state_of(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def assert_untouched(net: nn.Module, before: dict[str, torch.Tensor]) -> None:
    """Parameters and buffers, bit for bit."""
    assert before.keys() == net.state_dict().keys()
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def meta_loss(net: dx.DynamicNet, inner: InnerLoop, exits=None, **how) -> MetaLoss:
    return MetaLoss(net, separate(net, dx.meta.ownership(net, exits, adapts=inner.adapts)), inner, **how)


def assert_same(given: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], atol: float = 1e-10) -> None:
    assert given.keys() == wanted.keys()
    for name, grad in wanted.items():
        assert_close(given[name], grad, rtol=0, atol=atol, msg=lambda told, name=name: f"{name}: {told}")


def first_episode(samples: dx.data.Samples, way: int = 4, shot: int = 4) -> dx.data.Episode:
    return dx.data.Episodes(rows=samples, way=way, shot=shot, query=6)[0]
