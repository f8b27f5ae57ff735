"""Rows of a source by number, which is how training draws them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dynext.types import Batch, Source


def by_index(source: Source) -> Callable[[Tensor], Batch]:
    """``take(index [b])``: banks and data sets give rows by number; what can only be iterated is read into memory."""
    take = getattr(source, "take", None)
    if take is not None:
        return take
    batches = list(source)
    x = torch.cat([batch.x for batch in batches])
    labels = [batch.y for batch in batches if batch.y is not None]
    y = torch.cat(labels) if len(labels) == len(batches) else None
    return lambda index: Batch(x=x[index], y=None if y is None else y[index])
