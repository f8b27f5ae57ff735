"""How long a method takes on this machine: to get ready, and for a sample."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from dynext.seeding import generator
from dynext.types import InputSpec
from dynext.zeroshot.synth.generator_training import Training
from dynext.zeroshot.synth.method import Work, rows_per_chunk
from dynext.zeroshot.synth.synthesize import METHODS

ROWS = 64
"""Made to find out; few, since an inverted sample takes a large part of a second on a large net."""

GAME_STEPS = 8
"""Of a generator's training that are tried; the rest is expected to take as long a step."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds until the first sample, and for each."""

    ready: float
    row: float


def pace(teacher: nn.Module, spec: InputSpec, method: str) -> Pace:
    """What ``method``, with its own defaults, takes here and now; the samples are thrown away."""
    options, longer = _shortened(method)
    began = time.monotonic()
    maker = METHODS[method](teacher, spec, 0, **options).prepare(Work(progress=False))
    ready = longer * (time.monotonic() - began)
    count = min(ROWS, rows_per_chunk(spec.shape))
    began = time.monotonic()
    maker.rows(count, generator(0))
    return Pace(ready=ready, row=(time.monotonic() - began) / count)


def _shortened(method: str) -> tuple[dict[str, Any], float]:
    """Options with which getting ready is tried, and how many times as long it really takes."""
    if method != "generator":
        return {}, 1.0
    usual = Training()
    return {"settings": replace(usual, steps=GAME_STEPS)}, usual.steps / GAME_STEPS
