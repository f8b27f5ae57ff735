"""The net that generates samples from a latent and a class, and, if it is given some, from samples to start from.

Shapes: b samples, c channels, h height, w width, d latent values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST_GRID = 16
"""Cells a side that the first map has at most; larger pictures get more up-convolutions."""

EDGE = 0.02
"""How near to black and white a starting pixel counts: at the very edge a sigmoid has no slope."""


class GeneratorNet(nn.Module):
    """Latent ``[b d]`` and class ``[b]`` to pixels ``[b c h w]`` in [0, 1], any size, gray or color.

    A linear layer fills a grid of a quarter of the sides, two up-convolutions (more for large pictures) lead to the
    full size. With ``warm``, pixels to start from come in as well, and what it gives is a change of them: none at
    first.

    Source of the shape: DAFL, Chen et al., ICCV 2019, arXiv:1904.01186. Ours knows the class and any size.
    """

    def __init__(
        self, shape: tuple[int, ...], num_classes: int, *, latent: int = 64, width: int = 32, warm: bool = False
    ) -> None:
        super().__init__()
        channels, *size = shape
        self.sizes = grids((size[0], size[1]))
        self.width, wide = width, 2 * width
        self.classes = nn.Embedding(num_classes, latent)
        self.fill = nn.Linear(2 * latent, wide * self.sizes[0][0] * self.sizes[0][1])
        self.norm = nn.BatchNorm2d(wide)
        num_ups = len(self.sizes) - 1
        self.ups = nn.ModuleList(_conv(wide, wide if i < num_ups - 1 else width) for i in range(num_ups))
        self.encode = nn.ModuleList(
            _conv(channels if i == 0 else wide, wide, stride=2) for i in range(num_ups if warm else 0)
        )
        self.to_pixels = nn.Conv2d(width, channels, 3, 1, 1)
        if warm:
            nn.init.zeros_(self.to_pixels.weight)
            nn.init.zeros_(self.to_pixels.bias)  # type: ignore[arg-type]

    def forward(self, z_bd: Tensor, class_b: Tensor, start: Tensor | None = None) -> Tensor:
        """``start``: pixels ``[b c h w]``, for a warm generator only."""
        x = self.fill(torch.cat([z_bd, self.classes(class_b)], 1)).view(len(z_bd), 2 * self.width, *self.sizes[0])
        if start is not None:
            x = x + self._encoded(start)
        x = self.norm(x)
        for up, size in zip(self.ups, self.sizes[1:], strict=True):
            x = up(F.interpolate(x, size=size))
        change = self.to_pixels(x)
        return torch.sigmoid(change if start is None else change + start.clamp(EDGE, 1 - EDGE).logit())

    def _encoded(self, start: Tensor) -> Tensor:
        for conv in self.encode:
            start = conv(start)
        return start


def grids(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Sides ``(h, w)`` from the first grid to the full size, each twice the one before (rounded up).

    >>> grids((28, 28)), grids((9, 14))
    ([(7, 7), (14, 14), (28, 28)], [(3, 4), (5, 7), (9, 14)])
    >>> grids((224, 224))[0]
    (14, 14)
    """
    sizes = [size]
    while len(sizes) < 3 or max(sizes[0]) > LARGEST_GRID:
        h, w = sizes[0]
        sizes.insert(0, (-(-h // 2), -(-w // 2)))
    return sizes


def _conv(channels_in: int, channels_out: int, *, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.LeakyReLU(0.2),
    )
