"""Nets that cannot be split, or not everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from zoo.making import SIDE, ModelAndExample, conv, factory


class StaleBatch(nn.Module):
    """Reads the batch size early and uses it late."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 8), conv(8, 8)
        self.head = nn.Linear(8 * SIDE * SIDE, 10)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        return self.head(self.second(self.first(x)).view(batch, 8 * SIDE * SIDE))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 10), nn.Linear(8, 10)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.left(x) + self.right(y)


class DictOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = conv(3, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.first(x).mean((2, 3)))}


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
    "stale_batch": Refusal(make=factory(StaleBatch), says="node 'getitem'.*stale", after=("first",)),
    "two_inputs": Refusal(make=factory(TwoInputs), says=r"several inputs \(x, y\)"),
    "dict_output": Refusal(make=factory(DictOutput), says="gives a dict"),
    "map_output": Refusal(make=factory(MapOutput), says=r"shape \(3, 10, 8, 8\).*expected logits \[b k\]"),
    "single": Refusal(make=factory(Single), says="no cut at all"),
}
