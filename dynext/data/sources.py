"""A Source of whatever holds samples: arrays, data sets, loaders, folders, files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from dynext.data.class_lists import Classes
from dynext.data.columns import IMAGE_NAMES, LABEL_NAMES, Columns, is_image, is_picture
from dynext.data.datasets import read_arrays
from dynext.data.folders import images
from dynext.data.image_files import class_folders, image_files
from dynext.data.labels import as_labels
from dynext.data.layout import channels_first
from dynext.data.pixel_scale import PixelScale
from dynext.data.read_sources import Asked, ReadSource, StreamSource, say
from dynext.data.readers import ItemReader, LoaderReader, StreamReader, as_tensor, loader_order
from dynext.data.samples import Samples
from dynext.errors import SourceError
from dynext.types import Batch, InputSpec, Source

TAKEN = (
    "(x, y) of tensors or arrays, x alone, a torch data set, a DataLoader, a Hugging Face data set, a list of (image, "
    "label), a folder of images, a .npz or .npy file, or dx.data.Samples"
)


def as_source(
    data: Any,
    spec: InputSpec | None = None,
    *,
    labelled: bool | None = None,
    normalized: bool = False,
    classes: Classes | None = None,
    batch_size: int = 256,
) -> Source:
    """A Source of whatever holds samples; what is one already is given back as it is.

    Taken are ``(x, y)`` of tensors or NumPy arrays and ``x`` alone (channels first or last, gray without an axis of its
    own), torch data sets and lists of ``(image, label)`` or images, Hugging Face data sets and others of mappings,
    loaders (in the order of their data set, whatever they shuffle), folders of images, ``.npz`` and ``.npy`` files.
    Data sets and loaders are read as they are iterated; images of Pillow are fitted as files are.

    Pixels are uint8, floats in [0, 1], or floats in [0, 255], which is said; normalized ones are refused. All notes go
    to the logger ``dynext``, as warnings.

    Args:
        spec: what the net expects, where ``data`` does not say it.
        labelled: whether labels are wanted; if there are some, without it.
        normalized: the samples are normalized by ``spec``'s mean and std already, as those of a loader with
            ``transforms.Normalize``.
        classes: of the net, for folders; see `dynext.data.images`.

    Raises:
        SourceError: nothing that holds samples, no spec, another shape, pixels of an unknown scale, or labels that are
            none.
    """
    if isinstance(data, Source):
        return _own(data, spec, labelled)
    if spec is None:
        raise SourceError(
            "nothing says how pixels are to be normalized; give spec=dx.InputSpec(shape=(3, 224, 224), mean=(...), "
            "std=(...)), with mean 0 and std 1 for a net that takes pixels in [0, 1]"
        )
    asked = Asked(spec=spec, labelled=labelled, normalized=normalized, classes=classes, batch_size=batch_size)
    source = _source(data, asked)
    if labelled and not _has_labels(source):
        raise SourceError(
            "the samples have no labels, and labels are needed here; give (x, y), a data set of (image, label), or a "
            "folder with one sub-folder a class"
        )
    return source


@contextmanager
def named(name: str) -> Iterator[None]:
    """Errors of the block say which argument they are about."""
    try:
        yield
    except SourceError as error:
        raise SourceError(f"{name}: {error}") from error.__cause__


def _own(source: Source, spec: InputSpec | None, labelled: bool | None) -> Source:
    """A source as it is, unless it normalizes by other figures than the net wants, or twice."""
    own = getattr(source, "spec", None) if source.bn == "running" else None  # a bank's may be a guess
    if isinstance(source, Samples):
        _check_pixels(source)
    if isinstance(own, InputSpec) and spec is not None and (own.mean, own.std) != (spec.mean, spec.std):
        again = "dataclasses.replace(samples, spec=spec)" if isinstance(source, Samples) else "as_source(data, spec)"
        raise SourceError(
            f"the samples are normalized by mean {own.mean}, std {own.std}, the net's spec says {spec.mean}, "
            f"{spec.std}; give the samples the net's own spec: {again}"
        )
    return source.unlabelled() if isinstance(source, Samples) and labelled is False else source


def _check_pixels(samples: Samples) -> None:
    """Refuse floats that are no pixels: they would be normalized twice.

    A spec that normalizes nothing (mean 0, std 1) may go with numbers of any kind.
    """
    spec = samples.spec
    if samples.pixels.is_floating_point() and (any(spec.mean) or any(std != 1 for std in spec.std)):
        scale = PixelScale.of(samples.pixels, spec)
        if scale.kind != "unit":
            raise SourceError(f"{scale.note}? Samples hold uint8, or floats in [0, 1]: give pixels / 255")


def _source(data: Any, asked: Asked) -> Source:
    if isinstance(data, Batch):
        return _from_arrays(data.x, data.y, replace(asked, normalized=True))
    if _is_array(data):
        return _from_arrays(data, None, asked)
    if isinstance(data, tuple | list) and data and _is_array(data[0]) and data[0].ndim > 1 and _is_pair(data):
        return _from_arrays(data[0], data[1] if len(data) == 2 else None, asked)
    for kinds, made in READ:
        if isinstance(data, kinds):
            return made(data, asked)
    return _from_others(data, asked)


def _from_path(given: Path | str, asked: Asked) -> Source:
    path = Path(given)
    if not path.is_dir():
        with named(str(path)):
            x, y = read_arrays(path)
            return _from_arrays(x, y, asked)
    labelled = asked.labelled
    if labelled is None:
        labelled = bool(class_folders(path)) and all(len(f.relative_to(path).parts) > 1 for f in image_files(path))
    return images(path, asked.spec, labelled=labelled, classes=asked.classes)


def _from_tensors(data: TensorDataset, asked: Asked) -> Source:
    tensors = data.tensors
    if len(tensors) > 2:
        raise SourceError(f"a data set of {len(tensors)} tensors; give the images and the labels")
    return _from_arrays(tensors[0], tensors[1] if len(tensors) == 2 else None, asked)


def _from_arrays(x: Any, y: Any, asked: Asked) -> Source:
    pixels, note = channels_first(as_tensor(x), asked.spec, torch_made=isinstance(x, Tensor))
    if not len(pixels):
        raise SourceError("there is not one sample among the given ones; give some")
    scale = PixelScale.of(pixels, asked.spec, normalized=asked.normalized)
    labels, told = (None, None) if y is None or asked.labelled is False else as_labels(y, len(pixels))
    say([note, scale.note, told])
    return Samples(pixels=scale.pixels(pixels), y=labels, spec=asked.spec, batch_size=asked.batch_size)


def _from_mapping(data: Mapping[Any, Any], asked: Asked) -> Source:
    """Arrays by name; of several data sets by name none is chosen."""
    if data and not any(_is_array(value) for value in data.values()):
        raise SourceError(
            f"there are {', '.join(map(repr, data))}; give one of them, such as data[{next(iter(data))!r}]"
        )
    x, y = (next((data[name] for name in names if name in data), None) for names in (IMAGE_NAMES, LABEL_NAMES))
    if x is None:
        raise SourceError(f"there are {', '.join(map(repr, data)) or 'no arrays'}; call the pixels 'x', the labels 'y'")
    return _from_arrays(x, y, asked)


def _from_loader(loader: DataLoader[Any], asked: Asked) -> Source:
    by_number = not isinstance(loader.dataset, IterableDataset) and hasattr(loader.dataset, "__len__")
    if by_number and (loader.batch_size is not None or loader.batch_sampler is not None):
        order = loader_order(loader)
        if not order:
            raise SourceError("the loader reads no sample; give some")
        first = loader.collate_fn([loader.dataset[order[0]]])
        columns = Columns.of(first, getattr(loader.dataset, "features", None))
        return ReadSource(LoaderReader(loader=loader, order=order, columns=columns, spec=asked.spec), asked)
    if by_number:  # the data set itself gives whole batches
        return _from_stream(partial(map, loader.dataset.__getitem__, range(len(loader.dataset))), asked)  # type: ignore[arg-type]
    return _from_stream(loader, asked)


def _from_items(items: Any, asked: Asked) -> Source:
    if not len(items):
        raise SourceError("the data set is empty; give some samples")
    columns = Columns.of(items[0], getattr(items, "features", None))
    return ReadSource(
        ItemReader(items=items, columns=columns, spec=asked.spec, batch_size=min(asked.batch_size, 64)), asked
    )


def _from_others(data: Any, asked: Asked) -> Source:
    """Whatever is read by number, else whatever can be iterated."""
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, list | tuple) for part in data):
        if len(data[0]) != len(data[1]):
            raise SourceError(f"{len(data[1])} labels for {len(data[0])} images; give one each")
        return _from_items(list(zip(*data, strict=True)), asked)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, IterableDataset | bytes):
        return _from_items(data, asked)
    return _from_stream(data, asked)


def _from_stream(data: Any, asked: Asked) -> Source:
    if isinstance(data, Iterator):
        raise SourceError(
            f"a {type(data).__name__} can be read once only, and samples are read several times; give list(...) of it, "
            f"or a data set"
        )
    if not isinstance(data, Iterable) and not isinstance(data, partial):
        raise SourceError(f"a {type(data).__name__} holds no samples that can be read; give {TAKEN}")
    start = data if isinstance(data, partial) else partial(iter, data)
    first = list(islice(start(), 1))
    if not first:
        raise SourceError("there is not one sample to iterate; give some")
    columns = Columns.of(first[0], getattr(data, "features", None))
    reader = StreamReader(
        start=start,
        columns=columns,
        spec=asked.spec,
        batched=_is_batch(columns.image_of(first[0]), asked.spec),
        batch_size=min(asked.batch_size, 64),
    )
    return StreamSource(reader, asked)


def _has_labels(source: Source) -> bool:
    return next(iter(source)).y is not None


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) or (
        hasattr(value, "__array__") and hasattr(value, "ndim") and hasattr(value, "shape") and not is_picture(value)
    )


def _is_pair(data: Sequence[Any]) -> bool:
    """Whether it is ``(x, y)`` or ``(x,)``, not a list of images."""
    return len(data) == 1 or (len(data) == 2 and (np.ndim(data[1]) < data[0].ndim))


def _is_batch(image: Any, spec: InputSpec) -> bool:
    """Whether what one iteration gives is several images."""
    if isinstance(image, list | tuple):
        return bool(image) and is_image(image[0])
    return _is_array(image) and image.ndim > len(spec.shape)


READ: tuple[tuple[Any, Callable[[Any, Asked], Source]], ...] = (
    ((str, Path), _from_path),
    (TensorDataset, _from_tensors),
    (Mapping, _from_mapping),
    (DataLoader, _from_loader),
)
"""How things of a known type become sources."""
