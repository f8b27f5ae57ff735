"""Where the samples of a command come from: ``--data`` in all its forms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from dynext.data.class_lists import Classes
from dynext.data.datasets import array, bundled_sample, cifar10, fashion_mnist
from dynext.data.folders import images
from dynext.data.image_files import class_folders
from dynext.data.samples import Samples
from dynext.errors import SourceError
from dynext.seeding import generator
from dynext.types import Batch, BatchNormMode, InputSpec, Source


@dataclass(frozen=True, kw_only=True, eq=False)
class Watched:
    """A Source with a progress bar."""

    rows: Source

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    @property
    def bn(self) -> BatchNormMode:
        return self.rows.bn

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Batch]:
        with tqdm(total=len(self), desc="test samples", unit="row", disable=None, leave=False) as bar:
            for batch in self.rows:
                yield batch
                bar.update(len(batch.x))


NAMES = ("fashion-mnist", "cifar10", "bundled")


def open_samples(
    data: str,
    spec: InputSpec,
    *,
    root: Path | None = None,
    download: bool = False,
    classes: Classes | None = None,
    strict: bool = False,
) -> tuple[Samples, str]:
    """Test samples for a net that expects ``spec``, normalized as it wants them, and what they are in words.

    Args:
        classes: the net's, by which sub-folders are told apart; without them images of a folder are unlabelled.
        strict: refuse an image file that cannot be read.

    Raises:
        SourceError: nothing there, or samples of another shape than the model expects.
    """
    path = None if data in NAMES else _given(data)
    if path is not None and path.is_dir():
        labelled = classes is not None and bool(class_folders(path))
        rows, words = images(path, spec, labelled=labelled, classes=classes, strict=strict), f"images of {path}"
    else:
        rows, words = _open(data, spec, root, download)
    rows = replace(rows, spec=spec)
    if not len(rows):
        raise SourceError(f"{data} holds no sample; give some")
    return rows, f"{len(rows):,} {words}" + ("" if rows.y is not None else ", unlabelled")


def _open(data: str, spec: InputSpec, root: Path | None, download: bool) -> tuple[Samples, str]:
    if data == "fashion-mnist":
        return fashion_mnist("test", root=root, download=download), "Fashion-MNIST test images"
    if data == "bundled":
        return bundled_sample()[1], "Fashion-MNIST test images (the bundled sample)"
    if data == "cifar10":
        if root is None:
            raise SourceError("where is CIFAR-10? Give --root, torchvision's folder or a .npz with x and y")
        return cifar10("test", root=root), "CIFAR-10 test images"
    path = _given(data)
    if not path.exists():
        raise SourceError(f"no {data}; give {', '.join(NAMES)}, a folder of images, or a .npz file")
    return array(path, spec), f"samples of {path}"


def _given(data: str) -> Path:
    """The path that ``data`` names; an empty variable of a script must not mean the current folder."""
    if not data:
        raise SourceError("the name of the data is empty; give a folder of images or a .npz file")
    return Path(data)


def unlabelled_samples(data: str, spec: InputSpec, *, strict: bool = False) -> Samples:
    """Images to calibrate on: a folder, an array file or the bundled sample. Labels are dropped before anybody looks.

    Files of a folder that cannot be read are skipped, and named; with ``strict`` they are refused.

    Raises:
        SourceError: no image there, or samples of another shape than the model expects.
    """
    if data == "bundled":
        return replace(bundled_sample()[0], spec=spec)
    path = _given(data)
    if not path.exists():
        raise SourceError(f"no {data}; give a folder of images, a .npz or .npy file, or bundled (the shipped sample)")
    return (images(path, spec, strict=strict) if path.is_dir() else array(path, spec)).unlabelled()


def drawn(rows: int, count: int) -> torch.Tensor:
    """At most ``count`` of ``rows`` places, in random order: a folder's first samples may all be of one class."""
    return torch.randperm(rows, generator=generator(0))[:count]


def samples_to_time(
    data: str | None, spec: InputSpec, *, root: Path | None, download: bool, strict: bool = False
) -> tuple[Samples, str, bool]:
    """Samples for a benchmark, in words, and whether they are real: ``data``, else the bundled sample, else noise."""
    if data is not None:
        return (*open_samples(data, spec, root=root, download=download, strict=strict), True)
    sample = bundled_sample()[1]
    if sample.shape == spec.shape:
        return (*open_samples("bundled", spec), True)
    noise = torch.rand(256, *spec.shape, generator=generator(0))
    return Samples(pixels=noise, spec=spec), "256 samples of random noise", False
