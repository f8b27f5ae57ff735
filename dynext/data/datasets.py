"""Data sets as Sources: Fashion-MNIST, CIFAR-10, Omniglot, digits, image folders, arrays."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dynext.data.bundled import bundled_file
from dynext.data.fashion_mnist_files import fashion_file, read_idx
from dynext.data.folders import images
from dynext.data.omniglot_files import OmniglotPart, omniglot_images
from dynext.data.samples import Samples
from dynext.errors import SourceError
from dynext.types import InputSpec, Source

Split = Literal["train", "test"]

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FASHION_SPEC = InputSpec(shape=(1, 28, 28), mean=(0.2860,), std=(0.3530,))
CIFAR10_SPEC = InputSpec(shape=(3, 32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""The normalization of the public CIFAR-10 ResNets (ImageNet's figures)."""
UNIT = {"mean": (0.5,), "std": (0.5,)}
"""The normalization that brings gray pixels to [-1, 1]."""


def fashion_mnist(split: Split, *, root: Path | str | None = None, download: bool = False) -> Samples:
    """Fashion-MNIST: 60,000 training or 10,000 test samples ``[1 28 28]`` of ten classes.

    Looked for in ``root``, where Debian's ``dataset-fashion-mnist`` puts it, and in torchvision's usual folder
    ``data/FashionMNIST/raw``; with ``download=True`` fetched, checksums compared, into ``root`` or the cache.

    Raises:
        SourceError: the files are nowhere, or damaged.
    """
    stem = "train" if split == "train" else "t10k"
    x = read_idx(fashion_file(f"{stem}-images-idx3-ubyte.gz", root, download))
    y = read_idx(fashion_file(f"{stem}-labels-idx1-ubyte.gz", root, download))
    return Samples(pixels=torch.from_numpy(x)[:, None], y=torch.from_numpy(y).long(), spec=FASHION_SPEC)


def bundled_sample() -> tuple[Samples, Samples]:
    """The Fashion-MNIST sample that ships with dynext: 500 unlabelled training samples, 2,000 labelled test samples.

    Raises:
        SourceError: the file is damaged.
    """
    path = bundled_file("fashion_sample.npz")
    try:
        loaded = np.load(path, allow_pickle=False)
        calibration, x, y = (torch.from_numpy(loaded[name]) for name in ("calibration", "test_x", "test_y"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise SourceError(f"{path} is damaged ({error}); install dynext again") from error
    return Samples(pixels=calibration[:, None], spec=FASHION_SPEC), Samples(
        pixels=x[:, None], y=y.long(), spec=FASHION_SPEC
    )


def cifar10(split: Split, *, root: Path | str) -> Samples:
    """CIFAR-10 from torchvision's folder layout under ``root``, or from a ``.npz`` file with ``x`` and ``y``.

    Raises:
        SourceError: nothing that can be read is there.
    """
    root = Path(root)
    if root.suffix == ".npz":
        return array(root, CIFAR10_SPEC)
    from torchvision.datasets import CIFAR10

    try:
        published = CIFAR10(str(root), train=split == "train")
    except RuntimeError as error:
        hint = "torchvision.datasets.CIFAR10(root, download=True) puts it there"
        raise SourceError(f"CIFAR-10 is not under {root} ({error}); {hint}") from error
    return Samples(pixels=_pixels(published.data, CIFAR10_SPEC), y=torch.tensor(published.targets), spec=CIFAR10_SPEC)


def omniglot(part: OmniglotPart, *, root: Path | str | None = None, side: int = 28, download: bool = False) -> Samples:
    """Omniglot's characters as classes, twenty images ``[1 side side]`` of each, strokes white on black.

    ``root`` is its zip, the folder that this unpacks to, or a folder with either; with ``download=True`` fetched into
    ``root`` or the cache, checksums compared.

    Raises:
        SourceError: it is nowhere, or damaged.

    Source: Lake et al., Science 350, 2015.
    """
    x, y, _ = omniglot_images(part, root, side, download)
    return Samples(
        pixels=torch.from_numpy(x)[:, None], y=torch.from_numpy(y), spec=InputSpec(shape=(1, side, side), **UNIT)
    )


def digits(*, side: int = 8) -> Samples:
    """Scikit-learn's 1,797 handwritten digits ``[1 8 8]``, which come with that package; larger by interpolation.

    Raises:
        SourceError: less than one pixel.
    """
    if side < 1:
        raise SourceError(f"side={side}; give 1 pixel or more, 8 for the digits as they are")
    from sklearn.datasets import load_digits  # only here: its import takes long

    x, y = load_digits(return_X_y=True)
    pixels = torch.from_numpy(x).float().reshape(-1, 1, 8, 8) / 16
    pixels = pixels if side == 8 else F.interpolate(pixels, (side, side), mode="bilinear").clamp(0, 1)
    return Samples(pixels=pixels, y=torch.from_numpy(y).long(), spec=InputSpec(shape=(1, side, side), **UNIT))


def array(path: Path | str, spec: InputSpec) -> Samples:
    """A ``.npz`` with pixels ``x`` as `open_rows` takes them and perhaps ``y``, or a bare ``.npy``.

    Raises:
        SourceError: the file is missing, no array file, or of another shape than ``spec``.
    """
    x, y = read_arrays(path)
    return Samples(pixels=_pixels(x, spec), y=None if y is None else _labels(y, path), spec=spec)


def read_arrays(path: Path | str) -> tuple[np.ndarray, np.ndarray | None]:
    """What a ``.npz`` holds as ``x`` and perhaps ``y``, or a bare ``.npy``.

    Raises:
        SourceError: the file is missing, or no array file.
    """
    try:
        with Path(path).open("rb") as file:  # given a path, NumPy leaves a damaged file open
            loaded = np.load(file, allow_pickle=False)
            arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
        return arrays["x"], arrays.get("y")
    except KeyError as error:
        held = ", ".join(map(repr, arrays)) or "nothing"
        raise SourceError(f"{path} holds {held}; save the pixels as 'x', and labels, if any, as 'y'") from error
    except FileNotFoundError as error:
        raise SourceError(f"no file {path}; name a .npz with samples under 'x', or a .npy") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        # NumPy's own message would advise to unpickle it
        raise SourceError(
            f"{path} is no array file ({type(error).__name__}: damaged, another kind of file, or Python objects); "
            f"give a .npz with samples under 'x', a .npy, or a folder of images"
        ) from error


def _labels(y: np.ndarray, path: Path | str) -> Tensor:
    """Class numbers ``[n]``."""
    if y.ndim != 1 or y.dtype.kind not in "ui" or (y.size and int(y.min()) < 0):
        raise SourceError(f"'y' in {path} is {y.dtype} {list(y.shape)}; give one class number a sample, counted from 0")
    return torch.from_numpy(y.astype(np.int64))


def _pixels(x: np.ndarray | Tensor, spec: InputSpec) -> Tensor:
    """Pixels as `open_rows` takes them to ``[n c h w]``: uint8 as it is, other numbers as float32."""
    if isinstance(x, np.ndarray) and x.dtype.kind not in "uif":
        raise SourceError(f"an array of {x.dtype} holds no pixels; give uint8, or float in [0, 1]")
    x = torch.as_tensor(x).detach().cpu()
    if x.dtype != torch.uint8:
        x = x.float()
        if x.numel() and not (x.min() >= 0 and x.max() <= 1):
            span = f"{float(x.min()):g} and {float(x.max()):g}"
            raise SourceError(f"pixels between {span}; give uint8, or float in [0, 1] (the spec normalizes)")
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and tuple(x.shape[1:]) != spec.shape and x.shape[-1] == spec.shape[0]:
        x = x.permute(0, 3, 1, 2)
    return x.contiguous()


def open_rows(rows: Path | str | np.ndarray | Tensor | Source, spec: InputSpec, *, strict: bool = False) -> Samples:
    """Unlabelled samples from an image folder, a ``.npz`` or ``.npy`` file, an array of pixels, or a Source.

    Pixels are uint8 or float in [0, 1], ``[n h w]``, ``[n h w c]`` or ``[n c h w]``. Labels are dropped. Files of a
    folder that are no images are skipped and named, or refused if ``strict``.

    Raises:
        SourceError: nothing that can be read, no sample, or samples of another shape than ``spec``.
    """
    if isinstance(rows, str | Path):
        samples = images(rows, spec, strict=strict) if Path(rows).is_dir() else array(rows, spec).unlabelled()
    elif isinstance(rows, np.ndarray | Tensor):
        samples = Samples(pixels=_pixels(rows, spec), spec=spec)
    elif isinstance(rows, Samples):
        samples = replace(rows, spec=spec, y=None)
    else:
        parts = [getattr(rows, "spec", spec).pixels(batch.x) for batch in rows] or [torch.empty(0, *spec.shape)]
        samples = Samples(pixels=torch.cat(parts), spec=spec, bn=rows.bn)
    if not len(samples):
        raise SourceError("there is not one sample among the given ones; give some unlabelled samples")
    return samples
