"""What decides about every gated stage at once, by the input alone: ``[b ...]`` to logits ``[b g]``.

BlockDrop's policy network, and two controls: the same answer for every sample, and chance.

Shapes: b samples, g gated stages, c channels, h height, w width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynext.modules.exits import channels_last
from dynext.seeding import generator

MAX_SIDE = 32
"""Larger inputs are averaged down to at most this many pixels a side first, by default."""


class PolicyNetwork(nn.Module):
    """A small ResNet: input ``[b c h w]`` to one logit per gated stage ``[b g]``.

    Source: BlockDrop, Wu et al., CVPR 2018, arXiv:1711.08393, section 4.1: for CIFAR one block in each of three stages
    with 16, 32 and 64 channels, average, linear. Ours has 1x1 convolutions as shortcuts where the shape changes, and
    averages large inputs down first, since its MACs count.
    """

    def __init__(self, shape: tuple[int, ...], num_gates: int, *, width: int, side: int, openness: float) -> None:
        super().__init__()
        channels, height, width_in = shape
        self.factor = min(math.ceil(max(height, width_in) / side), height, width_in)
        self.conv = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(
            _Block(width, width, 1), _Block(width, 2 * width, 2), _Block(2 * width, 4 * width, 2)
        )
        self.decide = nn.Linear(4 * width, num_gates)
        nn.init.constant_(self.decide.bias, openness)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, self.factor) if self.factor > 1 else x
        return self.decide(self.blocks(F.relu(self.norm(self.conv(x)))).mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        same = channels_in == channels_out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class Unconditional(nn.Module):
    """The same for every sample: the logits of given probabilities, infinite for 0 and 1."""

    logit_g: Tensor

    def __init__(self, run_g: Sequence[float]) -> None:
        super().__init__()
        # rounded once, as a policy's threshold is: a stage of just that probability runs
        self.register_buffer("logit_g", torch.tensor(run_g, dtype=torch.float64).logit().float(), False)

    def forward(self, x: Tensor) -> Tensor:
        return self.logit_g.expand(x.shape[0], -1)  # an exporter would take len(x) for a constant


class ByChance(nn.Module):
    """Each stage runs with a given probability, drawn from the sample's own bits, so that the same sample is decided
    alike in any batch.
    """

    weight: Tensor
    rate_g: Tensor

    def __init__(self, rate_g: Sequence[float], numel: int, seed: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-(2**62), 2**62, (numel,), generator=generator(seed)), False)
        self.register_buffer("rate_g", torch.tensor(rate_g, dtype=torch.float64), False)

    def forward(self, x: Tensor) -> Tensor:
        bits = x.float().flatten(1).contiguous().view(torch.int32).long()
        # integers wrap around, so that the sum is the same in whatever order a kernel takes it
        key_b = (bits * (2 * self.weight + 1)).sum(1)
        key_bg = key_b[:, None] + 0x1E3779B97F4A7C15 * torch.arange(1, len(self.rate_g) + 1, device=x.device)
        for factor in (0x3F58476D1CE4E5B9, 0x14D049BB133111EB):
            key_bg = (key_bg ^ (key_bg >> 30 & 0x3FFFFFFFF)) * factor
        drawn_bg = (key_bg >> 11 & (2**53 - 1)).double() / 2**53
        infinity = torch.full_like(drawn_bg, math.inf)
        return infinity.where(drawn_bg < self.rate_g, -infinity).to(x.dtype)


class Mean(nn.Module):
    """``[b c h w]``, ``[b h w c]``, ``[b t d]`` or ``[b d]`` to the mean per channel ``[b c]``."""

    def __init__(self, tap: tuple[int, ...]) -> None:
        super().__init__()
        last = len(tap) < 3 or channels_last(tap)
        self.dims = tuple(range(1, len(tap))) if last else (2, 3)

    def forward(self, tap: Tensor) -> Tensor:
        return tap.mean(self.dims) if self.dims else tap


class ChannelsFirst(nn.Module):
    """``[b h w c]`` to ``[b c h w]``."""

    def forward(self, tap: Tensor) -> Tensor:
        return tap.permute(0, 3, 1, 2)


class RunOrSkip(nn.Module):
    """Two scores, skip and run, ``[b c]`` to the logit ``[b]`` of their softmax: run less skip."""

    def __init__(self, channels: int, openness: float) -> None:
        super().__init__()
        self.scores = nn.Linear(channels, 2)
        with torch.no_grad():
            self.scores.bias.copy_(torch.tensor([0.0, openness]))

    def forward(self, x: Tensor) -> Tensor:
        score_b2 = self.scores(x)
        return score_b2[:, 1] - score_b2[:, 0]
