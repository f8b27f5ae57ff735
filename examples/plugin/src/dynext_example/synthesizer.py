"""A synthesizer: samples out of a teacher alone, or as here out of nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from dynext.types import InputSpec


def waves(teacher: nn.Module, spec: InputSpec, seed: int, *, waves: int = 4) -> Callable[[int, Generator], Tensor]:
    """Sums of a few plane waves of random direction, length and phase, in each channel."""
    _, height, width = spec.shape
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")

    def sample(count: int, draw: Generator) -> Tensor:
        figures = torch.rand(3, count, spec.shape[0], waves, 1, 1, generator=draw)
        along = (figures[0] - 0.5) * x + (figures[1] - 0.5) * y
        pixels = 0.5 + 0.5 * torch.sin(40 * along + 7 * figures[2]).mean(2)
        return spec.normalize(pixels)

    return sample
