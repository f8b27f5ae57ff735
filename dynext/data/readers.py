"""Data sets and loaders that are read as they are iterated: raw images and labels, some at a time, in one fixed order.

Shapes: b samples of a batch, c channels, h height, w width.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from dynext.data.columns import Columns, is_picture
from dynext.data.image_pixels import fitted, image
from dynext.data.layout import channels_first
from dynext.errors import SourceError, line
from dynext.seeding import seeded
from dynext.types import InputSpec


class Raw(NamedTuple):
    """Images ``[b c h w]`` in whatever scale, their labels, and what was done about their channels."""

    x: Tensor
    y: Any
    note: str | None


class Reader(Protocol):
    """Reads some samples by their numbers, or all of them."""

    def __len__(self) -> int: ...

    def at(self, numbers: Sequence[int]) -> Raw: ...

    def batches(self) -> Iterator[Raw]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemReader:
    """Of a data set that gives one item for a number."""

    items: Any
    columns: Columns
    spec: InputSpec
    batch_size: int

    def __len__(self) -> int:
        return len(self.items)

    def at(self, numbers: Sequence[int]) -> Raw:
        return raw_items([self.items[i] for i in numbers], self.columns, self.spec)

    def batches(self) -> Iterator[Raw]:
        for start in range(0, len(self), self.batch_size):
            yield self.at(range(start, min(start + self.batch_size, len(self))))


@dataclass(frozen=True, kw_only=True, eq=False)
class LoaderReader:
    """Of a loader over such a data set: its own function collates, its worker processes read."""

    loader: DataLoader[Any]
    order: Sequence[int]
    columns: Columns
    spec: InputSpec

    def __len__(self) -> int:
        return len(self.order)

    def at(self, numbers: Sequence[int]) -> Raw:
        items = [self.loader.dataset[self.order[i]] for i in numbers]
        return raw_batch(self.loader.collate_fn(items), self.columns, self.spec)

    def batches(self) -> Iterator[Raw]:
        loader = self.loader
        size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 256
        ordered: DataLoader[Any] = DataLoader(
            loader.dataset,
            batch_size=size,
            sampler=self.order,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            timeout=loader.timeout,
            generator=torch.Generator(),  # the global one is not drawn from
        )
        for batch in ordered:
            yield raw_batch(batch, self.columns, self.spec)


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamReader:
    """Of what can only be iterated, again and again: items, or batches of them."""

    start: Callable[[], Iterator[Any]]
    columns: Columns
    spec: InputSpec
    batched: bool
    batch_size: int

    def batches(self) -> Iterator[Raw]:
        if self.batched:
            for batch in self.start():
                yield raw_batch(batch, self.columns, self.spec)
            return
        held: list[Any] = []
        for item in self.start():
            held.append(item)
            if len(held) == self.batch_size:
                yield raw_items(held, self.columns, self.spec)
                held = []
        if held:
            yield raw_items(held, self.columns, self.spec)


def loader_order(loader: DataLoader[Any]) -> Sequence[int]:
    """The numbers that a loader reads, in the order of its data set: a source gives the same at each iteration."""
    sampler, count = loader.sampler, len(loader.dataset)  # type: ignore[arg-type]
    own = getattr(loader.batch_sampler, "sampler", sampler) is sampler
    whole = isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == count
    if own and (whole or isinstance(sampler, SequentialSampler)):
        return range(count)
    with seeded(0):
        if own and loader.batch_size is not None:
            return sorted(map(int, sampler))
        return sorted(int(i) for numbers in loader.batch_sampler or () for i in numbers)


def raw_items(items: Sequence[Any], columns: Columns, spec: InputSpec) -> Raw:
    """Single items as one batch."""
    parts = [_image(columns.image_of(item), spec) for item in items]
    kinds = {part.dtype for part, _ in parts}
    if len(kinds) > 1:
        raise SourceError(f"some images are {', others '.join(sorted(map(str, kinds)))}; give all in one type")
    labels = None if columns.label is None else [columns.label_of(item) for item in items]
    x = torch.cat([part for part, _ in parts]) if parts else torch.empty(0, *spec.shape)
    return Raw(x, labels, next((note for _, note in parts if note), None))


def raw_batch(batch: Any, columns: Columns, spec: InputSpec) -> Raw:
    """What a loader has collated."""
    images = columns.image_of(batch)
    if isinstance(images, list | tuple):  # a loader that leaves images of Pillow in a list
        parts = [_image(one, spec) for one in images]
        return Raw(torch.cat([x for x, _ in parts]), columns.label_of(batch), None)
    x, note = channels_first(as_tensor(images), spec, torch_made=isinstance(images, Tensor))
    return Raw(x, columns.label_of(batch), note)


def _image(given: Any, spec: InputSpec) -> tuple[Tensor, str | None]:
    """One image of any kind as ``[1 c h w]``."""
    if isinstance(given, Mapping) and is_picture(given):
        return _undecoded(given, spec)[None], None
    if is_picture(given):
        return fitted(given, spec)[None], None
    if isinstance(given, str | Path):
        return image(given, spec)[None], None
    x = as_tensor(given)
    if x.ndim == 2 and len(spec.shape) == 3 and x.shape != spec.shape[1:]:
        raise SourceError(f"an image has shape {tuple(x.shape)}, the model expects {spec.shape}; resize it")
    return channels_first(x[None], spec, torch_made=isinstance(given, Tensor))


def _undecoded(given: Mapping[str, Any], spec: InputSpec) -> Tensor:
    from PIL import Image

    if given.get("bytes") is None:
        return image(given["path"], spec)
    try:
        opened = Image.open(io.BytesIO(given["bytes"]))
    except Exception as error:  # Pillow's readers fail in ways of their own
        raise SourceError(f"{given.get('path') or 'an item'} is no image that can be read ({line(error)})") from error
    with opened:
        return fitted(opened, spec)


def as_tensor(given: Any) -> Tensor:
    """Numbers of any kind as a plain tensor on the CPU; those of an array are not copied.

    Raises:
        SourceError: no numbers.
    """
    if isinstance(given, Tensor):
        return given.detach().as_subclass(Tensor).cpu()
    try:
        array = np.asarray(given)
    except (TypeError, ValueError) as error:
        raise SourceError(f"a {type(given).__name__} holds no pixels ({line(error)})") from error
    if array.dtype.kind not in "uifb" or array.dtype.itemsize > 8:
        raise SourceError(f"a {type(given).__name__} of {array.dtype} holds no pixels; give uint8, or float in [0, 1]")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    if any(stride < 0 for stride in array.strides):
        array = array.copy()
    return _shared(array)


def _shared(array: np.ndarray) -> Tensor:
    """A tensor on the array's own memory, which nobody writes to: torch would warn of a file that is mapped to read."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        return torch.from_numpy(array)
