"""Nets as training leaves them: masked, wrapped, with what a forward kept."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from zoo.making import conv


class Masked(nn.Module):
    """Pruning masks that have just been put on: the masked weights still hang on the graph of gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = conv(3, 8), conv(8, 8), conv(8, 8)
        self.head = nn.Linear(8, 10)
        for part in (self.second, self.third):
            prune.l1_unstructured(part[0], "weight", amount=0.5)
            prune.random_unstructured(part[0], "weight", amount=0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.third(self.second(self.first(x))).mean((2, 3)))


class Remembering(nn.Module):
    """Keeps its features, a list of them and a lock on itself; the features hang on the graph of gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = conv(3, 8), conv(8, 8), conv(8, 8)
        self.head = nn.Linear(8, 10)
        self.lock = threading.Lock()
        self.seen: list[Tensor] = []
        self.features: Tensor | None = None
        with torch.enable_grad():
            self(torch.zeros(2, 3, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            self.features = self.second(self.first(x))
            self.seen = [*self.seen[-1:], self.features]
            return self.head(self.third(self.features).mean((2, 3)))


class AnyArguments(nn.Module):
    """What experiments put around a net."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            conv(3, 8), conv(8, 8), conv(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
        )

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.net(*args, **kwargs)
