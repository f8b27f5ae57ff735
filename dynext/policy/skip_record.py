"""What gates did to the rows of a table: which stages were skipped, what that left to pay, what the full net says.

Shape legend: n rows, e exits (the last is the full net), k classes, g gated stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from dynext.brief import short_repr
from dynext.errors import PolicyError


@dataclass(frozen=True, kw_only=True, eq=False)
class Skipped:
    """One skip rule's decisions on the rows of a table."""

    __repr__ = short_repr

    keep_g: tuple[float | None, ...]
    """The rule, as `Policy.keep_g`."""
    ran_ng: Tensor
    """Which gated stages each row runs, bool."""
    macs_ne: Tensor
    """MACs of the stages that each row runs up to each exit, int64, gates included, heads not."""
    full_nk: Tensor
    """Logits of the full net, nothing skipped, float32."""

    def check(self, n: int, e: int, k: int) -> None:
        """Raises PolicyError when this is not about ``n`` rows, ``e`` exits, ``k`` classes."""
        wanted = {"ran_ng": (n, len(self.keep_g)), "macs_ne": (n, e), "full_nk": (n, k)}
        kinds = {"ran_ng": torch.bool, "macs_ne": torch.int64, "full_nk": torch.float32}
        for name, shape in wanted.items():
            tensor: Tensor = getattr(self, name)
            if tuple(tensor.shape) != shape or tensor.dtype != kinds[name]:
                raise PolicyError(
                    f"{name} is {list(tensor.shape)} of {tensor.dtype}; a table of {n} samples, {e} exits, {k} classes "
                    f"and {len(self.keep_g)} gates wants {list(shape)} of {kinds[name]}"
                )

    @cached_property
    def whole_n(self) -> Tensor:
        """Rows that skipped nothing ``[n]``, bool."""
        return self.ran_ng.all(1)

    @property
    def kept_g(self) -> tuple[float, ...]:
        """Share of the rows that run each gated stage."""
        return tuple(self.ran_ng.double().mean(0).tolist())

    @property
    def num_paths(self) -> int:
        """How many different sets of stages the rows run: 1 is a static net."""
        return len(self.ran_ng.unique(dim=0))

    def subset(self, index: Tensor) -> Skipped:
        """The rows at ``index``, an int64 or bool tensor."""
        return replace(self, ran_ng=self.ran_ng[index], macs_ne=self.macs_ne[index], full_nk=self.full_nk[index])

    @staticmethod
    def join(parts: Sequence[Skipped]) -> Skipped:
        """Rows of several, by the rule of the first."""
        columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in _TENSORS}
        return Skipped(keep_g=parts[0].keep_g, **columns)

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps beside ``keep_g``; `take` brings it back."""
        return {f"skipped.{name}": getattr(self, name).contiguous() for name in _TENSORS}

    @classmethod
    def take(cls, keep_g: Sequence[float | None], tensors: dict[str, Tensor]) -> Skipped:
        """Take what `tensors` gave out of ``tensors``. Raises KeyError where one is missing."""
        return cls(keep_g=tuple(keep_g), **{name: tensors.pop(f"skipped.{name}") for name in _TENSORS})


_TENSORS = ("ran_ng", "macs_ne", "full_nk")
