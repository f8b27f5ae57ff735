"""What a Source promises, looked at over all its samples: `dynext.testing.check_source` raises what is broken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from dynext.data.pixel_scale import SLACK, span
from dynext.types import Batch, InputSpec, Source

PASSES = 3
"""Batches that are compared with those of a second iteration."""


@dataclass(kw_only=True)
class _Seen:
    """What one iteration has shown so far."""

    count: int = 0
    labelled: set[bool] = field(default_factory=set)
    lows: list[float] = field(default_factory=list)
    highs: list[float] = field(default_factory=list)
    undone: list[tuple[float, float]] = field(default_factory=list)


def broken_promises(
    source: Source, shape: tuple[int, ...], spec: InputSpec | None, num_classes: int | None
) -> Iterator[str]:
    """Each promise that ``source`` breaks, in words; some come of others.

    Args:
        spec: how samples should be normalized; nothing is said about it without.
        num_classes: how many classes labels are of; any number from 0 without.
    """
    if tuple(source.shape) != shape:
        yield f"it says samples of shape {tuple(source.shape)}, expected {shape}"
    if source.bn not in ("running", "batch"):
        yield f"bn is {source.bn!r}, expected 'running' or 'batch'"
    seen = _Seen()
    for batch in source:
        yield from _broken_by_batch(batch, shape, num_classes)
        _note(seen, batch, spec)
    if seen.count != len(source):
        yield f"it says {len(source)} samples and gives {seen.count}"
    if len(seen.labelled) > 1:
        yield "some batches have labels, others have not"
    if spec is not None and source.bn == "running":
        yield from _broken_by_pixels(seen, spec)
    yield from _broken_by_repetition(source)


def _broken_by_batch(batch: Any, shape: tuple[int, ...], num_classes: int | None) -> Iterator[str]:
    if not isinstance(batch, Batch):
        yield f"it gives a {type(batch).__name__}, expected dx.data.Batch(x=, y=)"
        return
    x, y = batch.x, batch.y
    if tuple(x.shape[1:]) != shape:
        yield f"a batch of samples {tuple(x.shape[1:])}, expected {shape}"
    if not x.is_floating_point():
        yield f"samples are {x.dtype}, expected normalized floats"
    elif not bool(torch.isfinite(x).all()):
        yield "samples hold NaN or infinity"
    if y is None:
        return
    if y.shape != x.shape[:1]:
        yield f"a batch has not one label per sample: {tuple(y.shape)} for {len(x)}"
    elif y.dtype != torch.int64:
        yield f"labels are {y.dtype}, expected int64"
    elif len(y) and (int(y.min()) < 0 or (num_classes is not None and int(y.max()) >= num_classes)):
        most = "" if num_classes is None else f" to {num_classes - 1}"
        yield f"labels from {int(y.min())} to {int(y.max())}, expected class numbers from 0{most}"


def _note(seen: _Seen, batch: Any, spec: InputSpec | None) -> None:
    if not isinstance(batch, Batch):
        return
    seen.count += len(batch.x)
    seen.labelled.add(batch.y is not None)
    if spec is not None and batch.x.is_floating_point() and tuple(batch.x.shape[1:]) == spec.shape and len(batch.x):
        low, high = span(batch.x)
        seen.lows.append(low)
        seen.highs.append(high)
        seen.undone.append(span(_undone(batch.x, spec)))


def _undone(x: Tensor, spec: InputSpec) -> Tensor:
    shape = (-1, *[1] * (len(spec.shape) - 1))
    std, mean = (torch.tensor(one, dtype=x.dtype, device=x.device).view(shape) for one in (spec.std, spec.mean))
    return x * std + mean


def _broken_by_pixels(seen: _Seen, spec: InputSpec) -> Iterator[str]:
    """Samples that are normalized twice, by other figures, or not at all."""
    normalizes = any(spec.mean) or any(std != 1 for std in spec.std)
    if not seen.undone or not normalizes or spec.shape[0] not in (1, 3):
        return
    low, high = min(low for low, _ in seen.undone), max(high for _, high in seen.undone)
    if low < -SLACK or high > 1 + SLACK:
        yield (
            f"undone by the spec's mean {spec.mean} and std {spec.std} pixels lie between {low:.4g} and {high:.4g}, "
            f"expected [0, 1]: samples are normalized twice, by other figures, or are pixels in [0, 255]"
        )
    elif min(seen.lows) >= 0 and max(seen.highs) <= 1 and min(spec.mean) > 0 and max(seen.highs) > 0:
        yield "all samples lie in [0, 1], none is darker than the spec's mean: they are pixels that nobody normalized"


def _broken_by_repetition(source: Source) -> Iterator[str]:
    """The same samples in the same order each time, and by number."""
    for first, second in islice(zip(source, source, strict=False), PASSES):
        if not _same(first, second):
            yield "a second pass gives other samples"
            return
    take = getattr(source, "take", None)
    if take is not None and len(source):
        head, last = next(iter(source)), len(source) - 1
        if not _same(head, take(torch.arange(len(head.x)))):
            yield "take(index) gives other samples than iterating"
        if len(take(torch.tensor([last, 0, 0])).x) != 3:
            yield "take(index) does not give one sample for each number"


def _same(first: Any, second: Any) -> bool:
    if not (isinstance(first, Batch) and isinstance(second, Batch)) or first.x.shape != second.x.shape:
        return False
    alike = (first.y is None) == (second.y is None) and bool(torch.allclose(first.x, second.x, atol=1e-6))
    return alike and (first.y is None or second.y is None or torch.equal(first.y, second.y))
