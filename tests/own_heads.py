"""Heads and gates of a user's own, importable as a package of his would be."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Averaged(nn.Module):
    """A convolution, averaged, linear: the usual."""

    def __init__(self, tap: tuple[int, ...], num_classes: int, width: int = 12) -> None:
        super().__init__()
        self.conv = nn.Conv2d(tap[0], width, 3)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.act(self.conv(x)).mean((2, 3))))


class Scaled(nn.Module):
    """Its answer is not what a linear layer gives."""

    def __init__(self, tap: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.fc, self.scale = nn.Linear(tap[0], num_classes), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.fc(x.mean((2, 3)))


class InParts(nn.Module):
    """Names its parts itself."""

    def __init__(self, tap: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.reduce = nn.AvgPool2d(2)
        self.embedder = nn.Sequential(nn.Conv2d(tap[0], 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(6, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.embedder(self.reduce(x)))


class Distances(nn.Module):
    """Multiplies by no operation that torch counts."""

    def __init__(self, tap: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.randn(num_classes, tap[0]))

    def forward(self, x: Tensor) -> Tensor:
        return -(x.mean((2, 3))[:, None] - self.centers).square().sum(-1)


class Lazy(nn.Sequential):
    def __init__(self, tap: tuple[int, ...], num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(num_classes))


class Gate(nn.Module):
    """One gate, on a map."""

    def __init__(self, tap: tuple[int, ...]) -> None:
        super().__init__()
        self.score = nn.Linear(tap[0], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x.mean((2, 3)))[:, 0]


class Remembering(nn.Module):
    """All gates: a running sum of what each has seen."""

    def __init__(self, taps: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.score = nn.ModuleList([nn.Linear(tap[0], 4) for tap in taps])
        self.decide = nn.Linear(4, 1)

    def begin(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.new_zeros(len(x), 4),)

    def ask(self, g: int, tap: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        total = memory[0] + self.score[g](tap.mean((2, 3)))
        return self.decide(total)[:, 0], (total,)


class AtTheStart(nn.Module):
    """All gates at once, by the image alone."""

    at_once = True

    def __init__(self, taps: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.net = nn.LazyLinear(len(taps))

    def begin(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.net(x.flatten(1)),)

    def ask(self, g: int, tap: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        return memory[0][:, g], memory


HEADS = {kind.__name__: kind for kind in (Averaged, Scaled, InParts, Distances, Lazy)}
GATES = {kind.__name__: kind for kind in (Gate, Remembering, AtTheStart)}
