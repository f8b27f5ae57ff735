"""How the nets are built, and a block that most of them use."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dynext.seeding import generator, seeded

ModelAndExample = tuple[nn.Module, Tensor]
SIDE = 8


def conv(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU(True)
    )


def build(kind: Callable[[], nn.Module], seed: int = 0) -> ModelAndExample:
    """One model with its BatchNorm statistics away from their defaults, and two samples for it."""
    with seeded(seed):
        model = kind().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.3, 0.3)  # type: ignore[arg-type]
                nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return model, torch.randn(2, 3, SIDE, SIDE, generator=generator(seed))


def factory(kind: Callable[[], nn.Module]) -> Callable[[], ModelAndExample]:
    return lambda: build(kind)
