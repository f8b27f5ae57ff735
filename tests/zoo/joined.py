"""Nets that concatenate, split and shuffle channels, and ones that count features by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.making import SIDE, conv


class DenseLayer(nn.Module):
    """DenseNet's: a BatchNorm reads what all layers before have given, each its own channels of it."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class DenseNorm(nn.Module):
    """A DenseNet: BatchNorms behind concatenations, a transition between two dense parts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.dense1 = nn.Sequential(*(DenseLayer(8 + 4 * index, 4) for index in range(2)))
        self.transition = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1, bias=False), nn.AvgPool2d(2))
        self.dense2 = nn.Sequential(*(DenseLayer(8 + 4 * index, 4) for index in range(2)))
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense2(self.transition(self.dense1(self.stem(x))))
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


class Mixed(nn.Module):
    """Inception's: branches of several widths side by side, pooling among them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width, 4, 1)
        self.three = nn.Sequential(nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1))
        self.pooled = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.one(x), self.three(x), self.pooled(F.max_pool2d(x, 3, 1, 1))]
        return F.relu(torch.cat(branches, 1))


class InceptionLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.mixed = nn.Sequential(Mixed(8), nn.BatchNorm2d(16), Mixed(16))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mixed(self.stem(x)).mean((2, 3)))


class ShuffleUnit(nn.Module):
    """ShuffleNetV2's: half of the channels pass by, the other half is worked on, then both are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(),
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False), nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = x.chunk(2, dim=1)
        joined = torch.cat([kept, self.branch(worked)], dim=1)
        b, c, h, w = joined.size()
        return joined.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


class ShuffleLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 12)
        self.units = nn.Sequential(ShuffleUnit(12), ShuffleUnit(12))
        self.last = conv(12, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.units(self.stem(x))).mean((2, 3)))


class LeNet(nn.Module):
    """Convolutions straight before a `view` that lays the features out in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3), nn.Conv2d(8, 8, 1)
        self.fc1, self.fc2 = nn.Linear(8 * (SIDE - 2) ** 2, 24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        x = x.view(x.size(0), -1)
        return self.fc2(F.relu(self.fc1(x)))
