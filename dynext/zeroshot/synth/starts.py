"""What iterative methods start from: samples that already look like something, or noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Generator, Tensor, nn

from dynext.errors import SourceError
from dynext.types import InputSpec
from dynext.zeroshot.synth.fitted import fit_look, mixture, notes
from dynext.zeroshot.synth.procedural import gaussian, leaves, objects
from dynext.zeroshot.synth.styles import LEAVES, OBJECTS

Start = Literal["fitted", "objects", "leaves", "noise"]


@dataclass(frozen=True, kw_only=True)
class Starts:
    """``rows(count, draw)``: samples to start from ``[count c h w]``, normalized; ``notes`` for the provenance."""

    rows: Callable[[int, Generator], Tensor]
    notes: dict[str, Any] = field(default_factory=dict)


def starts(
    teacher: nn.Module, spec: InputSpec, seed: int, kind: Start, *, looks: int = 4, candidates: int = 24
) -> Starts:
    """Samples of the ``looks`` that fit the teacher best, of one of the named looks, or Gaussian noise.

    Raises:
        SourceError: no such start.
    """
    if kind == "fitted":
        best = fit_look(teacher, spec, seed, looks=looks, candidates=candidates)
        chosen = [f.look for f in best]
        return Starts(
            rows=lambda count, draw: spec.normalize(mixture(count, spec.shape, draw, chosen)), notes=notes(best)
        )
    if kind == "objects":
        return Starts(rows=lambda count, draw: spec.normalize(objects(count, spec.shape, draw, OBJECTS)))
    if kind == "leaves":
        return Starts(rows=lambda count, draw: spec.normalize(leaves(count, spec.shape, draw, LEAVES)))
    if kind == "noise":
        return Starts(rows=lambda count, draw: gaussian(count, spec.shape, draw))
    raise SourceError(f"start={kind!r}; give one of {', '.join(get_args(Start))}")
