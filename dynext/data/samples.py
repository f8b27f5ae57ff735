"""Samples in memory as a Source, and their augmentation.

Pixels stay uint8 in memory; they are normalized when they are drawn.

Shapes: b samples of a batch, n samples in all, c channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from dynext.brief import short_repr
from dynext.errors import SourceError
from dynext.types import Batch, BatchNormMode, InputSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """A Source held in memory: pixels ``[n c h w]`` (uint8, or float in [0, 1]) and labels ``[n]`` or ``None``."""

    __repr__ = short_repr

    pixels: Tensor
    spec: InputSpec
    y: Tensor | None = None
    batch_size: int = 256
    bn: BatchNormMode = "running"

    def __post_init__(self) -> None:
        if tuple(self.pixels.shape[1:]) != self.spec.shape:
            raise SourceError(
                f"samples have shape {tuple(self.pixels.shape[1:])}, the model expects {self.spec.shape}; "
                f"resize them or change the channels (a folder of image files is fitted on its own)"
            )
        if self.y is not None and len(self.y) != len(self.pixels):
            raise SourceError(f"{len(self.y)} labels for {len(self.pixels)} samples; give one each")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    def __len__(self) -> int:
        return len(self.pixels)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self), self.batch_size):
            yield self.take(torch.arange(start, min(start + self.batch_size, len(self))))

    def take(self, index: Tensor) -> Batch:
        """The samples at ``index [b]``, normalized."""
        return Batch(x=self.spec.normalize(self.pixels[index]), y=None if self.y is None else self.y[index])

    def subset(self, index: Tensor) -> Samples:
        """The samples at ``index [n]`` as samples of their own."""
        return replace(self, pixels=self.pixels[index], y=None if self.y is None else self.y[index])

    def unlabelled(self) -> Samples:
        """The same samples without their labels, for everything that must not see one."""
        return replace(self, y=None)


def augment(x: Tensor, draw: Generator, *, pad: int = 2, flip: bool = True) -> Tensor:
    """Samples ``[b c h w]``, each shifted by up to ``pad`` pixels (zeros come in) and, half of the time, mirrored."""
    b, _, h, w = x.shape
    padded = F.pad(x, (pad, pad, pad, pad))
    top = torch.randint(2 * pad + 1, (b,), generator=draw)
    left = torch.randint(2 * pad + 1, (b,), generator=draw)
    columns = torch.arange(w).expand(b, w)
    if flip:
        mirrored = torch.rand(b, 1, generator=draw) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows_bh = top[:, None] + torch.arange(h)
    columns_bw = left[:, None] + columns
    index_b = torch.arange(b)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[index_b, rows_bh[:, :, None], columns_bw[:, None, :]]
    # torch 2.13 has crashed in the backward pass of strided 1x1 convolutions of channels-last images
    return moved.permute(0, 3, 1, 2).contiguous()
