"""CIFAR-style ResNets: depth 6n+2, three stages of n basic blocks.

Source: He et al., CVPR 2016, arXiv:1512.03385, section 4.2. Module names are those of the public CIFAR-10
checkpoints, so their state dicts load as they are.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dynext.errors import ModelError


class PadShortcut(nn.Module):
    """Option A: every second pixel, the new channels zero; no parameters."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.added = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        before = self.added // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.added - before))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, ReLU after the sum."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            if option == "A":
                self.shortcut = PadShortcut(in_channels, out_channels)
            else:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
                )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """``[b c h w]`` to logits ``[b k]``.

    Args:
        depth: 6n+2 (20, 32, 44, 56, 110).
        width: channels of the first stage; the next ones double it.
        option: shortcut at a stage change, ``"A"`` (padding) or ``"B"`` (1x1 convolution).
    """

    def __init__(
        self, depth: int = 20, num_classes: int = 10, width: int = 16, channels: int = 3, option: str = "A"
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ModelError(f"depth {depth} is not 6n+2; try 8, 14, 20, 32, 44, 56 or 110")
        if min(width, channels, num_classes) < 1:
            raise ModelError(f"width {width}, channels {channels}, num_classes {num_classes}; give 1 or more of each")
        if option not in ("A", "B"):
            raise ModelError(f"shortcut option {option!r}; give 'A' or 'B'")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, 1, option)
        self.layer2 = _stage(width, 2 * width, blocks, 2, option)
        self.layer3 = _stage(2 * width, 4 * width, blocks, 2, option)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(out.mean((2, 3)))


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int, option: str) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, option)
    rest = [BasicBlock(out_channels, out_channels, 1, option) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)
