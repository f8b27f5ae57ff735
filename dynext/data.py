"""Data sets as Sources: Fashion-MNIST, CIFAR-10, digits, image folders, arrays.

Pixels stay uint8 in memory; rows are normalized when they are drawn.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from dynext.bundled import bundled_file
from dynext.errors import SourceError
from dynext.types import Batch, BatchNormMode, InputSpec, Source

Split = Literal["train", "test"]

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FASHION_SPEC = InputSpec(shape=(1, 28, 28), mean=(0.2860,), std=(0.3530,))
CIFAR10_SPEC = InputSpec(shape=(3, 32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""The normalization of the public CIFAR-10 ResNets (ImageNet's figures)."""

_FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_FASHION_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """A Source held in memory: pixels ``[n c h w]`` (uint8, or float in [0, 1]) and labels ``[n]`` or ``None``."""

    pixels: Tensor
    spec: InputSpec
    y: Tensor | None = None
    batch_size: int = 256
    bn: BatchNormMode = "running"

    def __post_init__(self) -> None:
        if tuple(self.pixels.shape[1:]) != self.spec.shape:
            raise SourceError(
                f"rows have shape {tuple(self.pixels.shape[1:])}, the net eats {self.spec.shape}; "
                f"resize them or change the channels (dx.data.images does both)"
            )
        if self.y is not None and len(self.y) != len(self.pixels):
            raise SourceError(f"{len(self.y)} labels for {len(self.pixels)} rows; give one each")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    def __len__(self) -> int:
        return len(self.pixels)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self), self.batch_size):
            yield self.take(torch.arange(start, min(start + self.batch_size, len(self))))

    def take(self, index: Tensor) -> Batch:
        """The rows at ``index [b]``, normalized."""
        return Batch(x=self.spec.normalize(self.pixels[index]), y=None if self.y is None else self.y[index])

    def subset(self, index: Tensor) -> Rows:
        return replace(self, pixels=self.pixels[index], y=None if self.y is None else self.y[index])

    def unlabelled(self) -> Rows:
        """The same rows without their labels, for everything that must not see one."""
        return replace(self, y=None)


def fashion_mnist(split: Split, *, root: Path | str | None = None, download: bool = False) -> Rows:
    """Fashion-MNIST: 60,000 training or 10,000 test rows ``[1 28 28]`` of ten classes.

    Looked for in ``root``, where Debian's ``dataset-fashion-mnist`` puts it, and in torchvision's usual folder
    ``data/FashionMNIST/raw``; with ``download=True`` fetched, checksums compared, into ``root`` or the cache.

    Raises:
        SourceError: the files are nowhere, or damaged.
    """
    stem = "train" if split == "train" else "t10k"
    x = _idx(_fashion_file(f"{stem}-images-idx3-ubyte.gz", root, download))
    y = _idx(_fashion_file(f"{stem}-labels-idx1-ubyte.gz", root, download))
    return Rows(pixels=torch.from_numpy(x)[:, None], y=torch.from_numpy(y).long(), spec=FASHION_SPEC)


def bundled_sample() -> tuple[Rows, Rows]:
    """The Fashion-MNIST sample that ships with dynext: 500 unlabelled training rows, 2,000 labelled test rows.

    Raises:
        SourceError: the file is damaged.
    """
    path = bundled_file("fashion_sample.npz")
    try:
        loaded = np.load(path, allow_pickle=False)
        calibration, x, y = (torch.from_numpy(loaded[name]) for name in ("calibration", "test_x", "test_y"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise SourceError(f"{path} is damaged ({error}); install dynext again") from error
    return Rows(pixels=calibration[:, None], spec=FASHION_SPEC), Rows(pixels=x[:, None], y=y.long(), spec=FASHION_SPEC)


def _fashion_file(name: str, root: Path | str | None, download: bool) -> Path:
    cache = Path(os.environ.get("DYNEXT_CACHE", Path.home() / ".cache" / "dynext")) / "fashion-mnist"
    folders = [Path("/usr/share/datasets/fashion-mnist"), Path("data/FashionMNIST/raw"), cache]
    if root is not None:
        folders = [Path(root), Path(root) / "FashionMNIST" / "raw"]
    for folder in folders:
        for candidate in (folder / name, folder / name.removesuffix(".gz")):
            if candidate.exists():
                return candidate
    if download:
        return _fetch(_FASHION_URL + name, Path(root) / name if root else cache / name, _FASHION_MD5[name])
    raise SourceError(
        f"Fashion-MNIST ({name}) is in none of {', '.join(map(str, folders))}; "
        f"install Debian's dataset-fashion-mnist, name its folder, or allow the download (download=True)"
    )


def _fetch(url: str, path: Path, md5: str) -> Path:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            content = response.read()
    except OSError as error:
        raise SourceError(f"{url} cannot be downloaded ({error}); fetch it by hand into {path.parent}") from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise SourceError(f"{url} has checksum {found}, expected {md5}; the file changed or the download broke off")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    os.replace(partial, path)
    return path


def _idx(path: Path) -> np.ndarray:
    """One file of the IDX format: two zero bytes, type (8 is uint8), rank, sizes as big-endian uint32, bytes."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if raw[:3] != b"\0\0\x08":
            raise ValueError("no IDX file of bytes")
        rank = raw[3]
        sizes = np.frombuffer(raw, ">u4", rank, 4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(sizes).copy()
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise SourceError(f"{path} is damaged ({error}); fetch it again") from error


def cifar10(split: Split, *, root: Path | str) -> Rows:
    """CIFAR-10 from torchvision's folder layout under ``root``, or from a ``.npz`` file with ``x`` and ``y``.

    Raises:
        SourceError: nothing that can be read is there.
    """
    root = Path(root)
    if root.suffix == ".npz":
        return array(root, CIFAR10_SPEC)
    from torchvision.datasets import CIFAR10

    try:
        found = CIFAR10(str(root), train=split == "train")
    except RuntimeError as error:
        hint = "torchvision.datasets.CIFAR10(root, download=True) puts it there"
        raise SourceError(f"CIFAR-10 is not under {root} ({error}); {hint}") from error
    return Rows(pixels=_pixels(found.data, CIFAR10_SPEC), y=torch.tensor(found.targets), spec=CIFAR10_SPEC)


def array(path: Path | str, spec: InputSpec) -> Rows:
    """A ``.npz`` with pixels ``x`` as `open_rows` takes them and perhaps ``y``, or a bare ``.npy``.

    Raises:
        SourceError: the file is missing, no array file, or of another shape than ``spec``.
    """
    try:
        with Path(path).open("rb") as file:  # given a path, NumPy leaves a damaged file open
            loaded = np.load(file, allow_pickle=False)
            columns = {"x": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
        x, y = columns["x"], columns.get("y")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise SourceError(f"{path} is no array file with rows under 'x' ({error})") from error
    return Rows(pixels=_pixels(x, spec), y=None if y is None else torch.from_numpy(y).long(), spec=spec)


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


def open_rows(rows: Path | str | np.ndarray | Tensor | Source, spec: InputSpec) -> Rows:
    """Unlabelled rows from whatever holds some: an image folder, a ``.npz`` or ``.npy``, pixels, or a Source.

    Pixels are uint8 or float in [0, 1], ``[n h w]``, ``[n h w c]`` or ``[n c h w]``. Labels are left behind.

    Raises:
        SourceError: nothing that can be read, no row, or rows of another shape than ``spec``.
    """
    if isinstance(rows, str | Path):
        found = images(rows, spec) if Path(rows).is_dir() else array(rows, spec).unlabelled()
    elif isinstance(rows, np.ndarray | Tensor):
        found = Rows(pixels=_pixels(rows, spec), spec=spec)
    elif isinstance(rows, Rows):
        found = replace(rows, spec=spec, y=None)
    else:
        parts = [getattr(rows, "spec", spec).pixels(batch.x) for batch in rows] or [torch.empty(0, *spec.shape)]
        found = Rows(pixels=torch.cat(parts), spec=spec, bn=rows.bn)
    if not len(found):
        raise SourceError("there is not one row among the given ones; give some unlabelled rows")
    return found


def images(folder: Path | str, spec: InputSpec, *, labelled: bool = False, limit: int | None = None) -> Rows:
    """Image files under ``folder`` as rows of ``spec.shape``: short side resized, center cropped, gray or color.

    With ``labelled`` each sub-folder of ``folder`` is a class, numbered in the order of names; with ``limit`` that many
    files are taken, spread evenly over all of them.

    Raises:
        SourceError: no folder, no image in it, or a file that is no image.
    """
    folder = Path(folder)
    files = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in _IMAGE_SUFFIXES]
    if not files:
        raise SourceError(f"no image in {folder} ({' '.join(sorted(_IMAGE_SUFFIXES))}); name a folder that holds some")
    names = sorted({p.relative_to(folder).parts[0] for p in files})
    if labelled and any(len(p.relative_to(folder).parts) < 2 for p in files):
        raise SourceError(f"{folder} holds images outside sub-folders; labelled rows need one sub-folder a class")
    if limit is not None and limit < len(files):
        # Spread over the folder: files are often sorted by class, and the first ones then show one class alone.
        files = [files[i * len(files) // limit] for i in range(limit)]
    pixels = torch.empty(len(files), *spec.shape, dtype=torch.uint8)
    for i, file in enumerate(files):
        pixels[i] = image(file, spec)
    y = torch.tensor([names.index(p.relative_to(folder).parts[0]) for p in files]) if labelled else None
    return Rows(pixels=pixels, y=y, spec=spec)


def image(file: Path | str, spec: InputSpec) -> Tensor:
    """One image file as uint8 pixels ``[c h w]`` of ``spec.shape``: short side resized, center cropped, gray or color.

    Raises:
        SourceError: no such file, or no image.
    """
    from PIL import Image, UnidentifiedImageError

    channels, height, width = spec.shape
    try:
        with Image.open(file) as opened:
            picture = opened.convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise SourceError(f"{file} is no image that can be read ({error})") from error
    scale = max(height / picture.height, width / picture.width)
    size = (max(round(picture.width * scale), width), max(round(picture.height * scale), height))
    picture = picture.resize(size, Image.Resampling.BILINEAR) if size != picture.size else picture
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    crop = np.array(picture.crop((left, top, left + width, top + height)))
    return torch.from_numpy(crop.reshape(height, width, channels)).permute(2, 0, 1)


def augment(x: Tensor, draw: Generator, *, pad: int = 2, flip: bool = True) -> Tensor:
    """Rows ``[b c h w]`` shifted by up to ``pad`` pixels (zeros come in) and mirrored half of the time."""
    b, _, h, w = x.shape
    padded = F.pad(x, (pad, pad, pad, pad))
    top = torch.randint(2 * pad + 1, (b,), generator=draw)
    left = torch.randint(2 * pad + 1, (b,), generator=draw)
    columns = torch.arange(w).expand(b, w)
    if flip:
        mirrored = torch.rand(b, 1, generator=draw) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows_bh = top[:, None] + torch.arange(h)
    columns_bw = left[:, None] + columns
    index_b = torch.arange(b)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index_b, rows_bh[:, :, None], columns_bw[:, None, :]].permute(0, 3, 1, 2)
