"""Nets that cannot be split, or not everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.making import SIDE, ModelAndExample, conv, factory


class SamplesMeet(nn.Module):
    """A net whose samples depend on each other: ``meet`` gives ``[b 8]`` for ``[b 8]``."""

    def __init__(self, meet: Callable[[Tensor], Tensor] | nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.head = conv(3, 8), conv(8, 8), nn.Linear(8, 10)
        self.meet = meet

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.meet(self.second(self.first(x)).mean((2, 3))))


class InAutocast(SamplesMeet):
    """A part of the forward in another precision."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.first(x)
        return self.head(self.second(x.float()).mean((2, 3)))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 10), nn.Linear(8, 10)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.left(x) + self.right(y)


class SeveralOutputs(nn.Module):
    """A dictionary in which nothing says what the logits are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = conv(3, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor | None]:
        features = self.first(x).mean((2, 3))
        return {"features": features, "loss": None, "scores": self.head(features)}


class ChangedByHook(nn.Module):
    """A hook does a part of the work."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv(3, 8), conv(8, 8), nn.Linear(8, 10)
        self.second.register_forward_hook(lambda module, given, out: out * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)).mean((2, 3)))


class MapOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 8), conv(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Single(nn.Module):
    """One layer with weights: nowhere to cut."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * SIDE * SIDE, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A net that ``split(model, example, after)`` must refuse with a message that matches ``says``."""

    make: Callable[[], ModelAndExample]
    says: str
    after: tuple[str, ...] | None = None


REFUSED: dict[str, Refusal] = {
    "centered": Refusal(
        make=factory(lambda: SamplesMeet(lambda x: x - x.mean(0))),
        says="depends on the samples beside it.*'sub'.*refused",
    ),
    "batch_statistics": Refusal(
        make=factory(lambda: SamplesMeet(nn.BatchNorm1d(8, track_running_stats=False))), says=r"meet \(BatchNorm1d\)"
    ),
    "in_autocast": Refusal(make=factory(lambda: InAutocast(nn.Identity())), says="turns on autocast.*refused.py, line"),
    "two_inputs": Refusal(make=factory(TwoInputs), says=r"several inputs \(x, y\)"),
    "several_outputs": Refusal(make=factory(SeveralOutputs), says=r"dict of several tensors \(features, scores\)"),
    "changed_by_hook": Refusal(make=factory(ChangedByHook), says="hook .*lambda.* on second changes what is computed"),
    "map_output": Refusal(make=factory(MapOutput), says=r"shape \(3, 10, 8, 8\).*expected logits \[b k\]"),
    "single": Refusal(make=factory(Single), says="no cut at all"),
}
