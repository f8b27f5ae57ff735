"""Layers that heads are made of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Reduce(nn.Module):
    """Channels first, averaged down by ``factor`` pixels a side; no parameters."""

    def __init__(self, *, channels_last: bool, factor: int) -> None:
        super().__init__()
        self.channels_last, self.factor = channels_last, factor

    def forward(self, tap: Tensor) -> Tensor:
        x = tap.permute(0, 3, 1, 2) if self.channels_last else tap
        return F.avg_pool2d(x, self.factor) if self.factor > 2 else _halved(x) if self.factor == 2 else x


def _halved(x: Tensor) -> Tensor:
    """``F.avg_pool2d(x, 2)``, which on CPUs takes up to seven times as long as three sums."""
    height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    half = x[:, :, 0:height:2] + x[:, :, 1:height:2]
    return (half[..., 0:width:2] + half[..., 1:width:2]) * 0.25


class PoolMix(nn.Module):
    """A learned mix of global average and maximum, per channel.

    Source: Kaya et al., ICML 2019, arXiv:1810.07052 (there one mix for all channels, over a 4x4 grid).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        share = self.mix.sigmoid()
        return share * x.mean((2, 3)) + (1 - share) * x.amax((2, 3))


class Separable(nn.Sequential):
    """A depthwise 3x3 convolution and a pointwise one, each with BatchNorm, ReLU at the end; the map keeps its shape.

    Source: MobileNet, Howard et al. 2017, arXiv:1704.04861 (there with another ReLU between the two).
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )


class Attention(nn.Module):
    """A map times a mask in (0, 1) computed from it: down by a strided convolution, up by a transposed one, sigmoid.

    Source: SCAN, Zhang et al., NeurIPS 2019, arXiv:1906.03951. Ours is narrow in its middle (``hidden`` channels), and
    its transposed convolution gives odd sizes back too.
    """

    def __init__(self, channels: int, hidden: int, size: tuple[int, int]) -> None:
        super().__init__()
        height, width = size
        added = (1 - height % 2, 1 - width % 2)  # what stride 2 rounded off on the way down
        self.mask = nn.Sequential(
            nn.Conv2d(channels, hidden, 3, 2, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.ConvTranspose2d(hidden, channels, 3, 2, 1, added, bias=False),
            nn.BatchNorm2d(channels),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask(x)


class Cosine(nn.Module):
    """A classifier by directions alone: ``scale`` times the cosine between the embedding, less ``center``, and each
    class's vector; ``[b d]`` to ``[b k]``.

    Source: Gidaris & Komodakis, CVPR 2018, arXiv:1804.09458 (a learned scale that starts at 10); the center is
    SimpleShot's, Wang et al. 2019, arXiv:1911.04623, zero unless it is filled in.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / in_features**0.5)
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.center: Tensor
        self.register_buffer("center", torch.zeros(in_features))

    def forward(self, f: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(f - self.center, dim=-1), F.normalize(self.weight, dim=-1))


class FeatureAttention(nn.Module):
    """Tokens ``[b t d]`` or a vector ``[b d]`` times a mask in (0, 1) computed from them, each token by itself."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.mask = nn.Sequential(
            nn.LayerNorm(features), nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, features), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask(x)


class Copy(nn.Module):
    """A copy of what it is given: a run overwrites the answers, and the live tensor is still needed."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


class TokenPool(nn.Module):
    """First token beside the mean of all: ``[b t d]`` to ``[b 2d]``."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, 0], x.mean(1)], dim=1)
