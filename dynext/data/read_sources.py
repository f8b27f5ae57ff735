"""Sources that are read as they are iterated, so that a large data set is never held in memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dynext.data.class_lists import Classes
from dynext.data.labels import as_labels
from dynext.data.pixel_scale import PixelScale
from dynext.data.readers import Raw, Reader, StreamReader
from dynext.data.samples import Samples
from dynext.errors import SourceError
from dynext.types import Batch, BatchNormMode, InputSpec, Source

log = logging.getLogger("dynext")
"""What is said here is a warning, which Python prints unless told otherwise."""

MOST_BYTES = 2**31
"""Of pixels that are read into memory where a verb needs all at once: two gibibytes of 8 bits."""
PROBED = 32
"""Samples, spread over a data set, by which one tells what its numbers stand for."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a source is wanted for."""

    spec: InputSpec
    labelled: bool | None
    normalized: bool
    classes: Classes | None
    batch_size: int


class ReadSource:
    """A Source of what is read by number, such as a data set."""

    bn: BatchNormMode = "running"

    def __init__(self, reader: Reader, asked: Asked) -> None:
        self.reader, self.spec, self.labelled = reader, asked.spec, asked.labelled
        if not len(reader):
            raise SourceError("the data set is empty; give some samples")
        numbers = sorted({i * (len(reader) - 1) // max(PROBED - 1, 1) for i in range(PROBED)})
        probed = reader.at(numbers)
        again = reader.at(numbers[:1])
        self.scale = PixelScale.of(probed.x, asked.spec, normalized=asked.normalized)
        notes = [probed.note, self.scale.note, _checked_labels(probed, asked)]
        if not torch.equal(probed.x[:1], again.x):
            notes.append(
                "the data set gives another image at each reading (a random transform): right to train on, but what is "
                "measured on it comes out otherwise each time"
            )
        say(notes)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    def __len__(self) -> int:
        return len(self.reader)

    def __iter__(self) -> Iterator[Batch]:
        return (_batch(raw, self.scale, self.labelled) for raw in self.reader.batches())

    def take(self, index: Tensor) -> Batch:
        """The samples at ``index [b]``, normalized."""
        return _batch(self.reader.at(index.tolist()), self.scale, self.labelled)


class StreamSource:
    """A Source of what can be iterated again and again, but not read by number; it is counted when first asked."""

    bn: BatchNormMode = "running"

    def __init__(self, reader: StreamReader, asked: Asked) -> None:
        self.reader, self.spec, self.labelled = reader, asked.spec, asked.labelled
        probed = next(reader.batches(), None)
        if probed is None:
            raise SourceError("there is not one sample to iterate; give some")
        self.scale = PixelScale.of(probed.x, asked.spec, normalized=asked.normalized)
        say([probed.note, self.scale.note, _checked_labels(probed, asked)])

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    @cached_property
    def _count(self) -> int:
        return sum(len(raw.x) for raw in self.reader.batches())

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        return (_batch(raw, self.scale, self.labelled) for raw in self.reader.batches())


def _batch(raw: Raw, scale: PixelScale, labelled: bool | None) -> Batch:
    y = None if raw.y is None or labelled is False else as_labels(raw.y, len(raw.x))[0]
    return Batch(x=scale.spec.normalize(scale.pixels(raw.x)), y=y)


def _checked_labels(probed: Raw, asked: Asked) -> str | None:
    return None if probed.y is None or asked.labelled is False else as_labels(probed.y, len(probed.x))[1]


def say(notes: Sequence[str | None]) -> None:
    """Tell the user, by the logger ``dynext``."""
    for note in notes:
        if note:
            log.warning("%s", note)


def held(source: Source, spec: InputSpec, name: str) -> Samples:
    """The unlabelled samples of ``source`` in memory; 8 bits stay 8 bits.

    Raises:
        SourceError: more than `MOST_BYTES` of them.
    """
    if isinstance(source, Samples):
        return source.unlabelled()
    size = len(source) * math.prod(spec.shape)
    if size > MOST_BYTES:
        raise SourceError(
            f"{name} holds {len(source):,} samples, {size / 2**30:.1f} GiB; a few hundred do, such as "
            f"torch.utils.data.Subset(data, range(0, {len(source)}, {max(len(source) // 1000, 1)}))"
        )
    if isinstance(source, ReadSource | StreamSource):
        parts = [source.scale.pixels(raw.x) for raw in source.reader.batches()]
    else:
        parts = [getattr(source, "spec", spec).pixels(batch.x) for batch in source]
    return Samples(pixels=torch.cat(parts) if parts else torch.empty(0, *spec.shape), spec=spec, bn=source.bn)
