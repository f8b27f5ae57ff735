"""Samples of a source by number, which is how training draws them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dynext.errors import SourceError
from dynext.types import Batch, Source


def by_index(source: Source) -> Callable[[Tensor], Batch]:
    """The function ``take(index [b])`` of a source; one that can only be iterated is read into memory for it."""
    take = getattr(source, "take", None)
    if take is not None:
        return take
    batches = list(source)
    x = torch.cat([batch.x for batch in batches])
    labels = [batch.y for batch in batches if batch.y is not None]
    y = torch.cat(labels) if len(labels) == len(batches) else None
    return lambda index: Batch(x=x[index], y=None if y is None else y[index])


def check_samples(source: Source, shape: tuple[int, ...], *, least: int = 1, name: str = "the source") -> None:
    """Check that ``source`` holds samples of the one ``shape`` that a model expects, and enough of them.

    Raises:
        SourceError: fewer than ``least``, or of another shape; ``name`` says which source is meant.
    """
    if len(source) < least:
        raise SourceError(f"{name} has {len(source) or 'no'} samples; give at least {least}")
    if tuple(source.shape) != tuple(shape):
        raise SourceError(f"{name} has samples of shape {tuple(source.shape)}; the model expects {tuple(shape)}")


def check_labels(y_b: Tensor, num_classes: int) -> None:
    """Refuse labels that no exit can answer with.

    Raises:
        SourceError: one below 0 or beyond the last class, or labels that are no int64.
    """
    if y_b.dtype != torch.int64 or not len(y_b) or not 0 <= int(y_b.min()) <= int(y_b.max()) < num_classes:
        span = f"from {int(y_b.min())} to {int(y_b.max())}" if len(y_b) else "without a sample"
        raise SourceError(
            f"labels {span} of {y_b.dtype}; the net has {num_classes} classes: give int64 from 0 to {num_classes - 1}"
        )
