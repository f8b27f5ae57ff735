"""What a synthesizer hands over: a function that makes rows, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Generator, Tensor

from dynext.types import BatchNormMode


@dataclass(frozen=True, kw_only=True)
class Maker:
    """How rows are made. Chunks have a fixed size and a generator each, so that a killed synthesis can go on.

    A method is a function ``(teacher, spec, seed, **options) -> Maker``: whatever has to be found out about the
    teacher once (and whatever has to be trained) is done there.
    """

    rows: Callable[[int, Generator], Tensor]
    """``rows(count, draw)``: ``count`` rows ``[count c h w]``, normalized."""
    per_chunk: int
    notes: dict[str, Any] = field(default_factory=dict)
    """What was found out, for the bank's provenance."""
    bn: BatchNormMode = "batch"


def rows_per_chunk(shape: tuple[int, ...]) -> int:
    """256 small rows, or as many large ones as fit a few megabytes, so that a chunk stays in the processor's cache."""
    return max(16, min(256, 2**18 // (shape[-1] * shape[-2])))
