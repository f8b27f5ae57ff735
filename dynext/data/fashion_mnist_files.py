"""The files that Fashion-MNIST comes in: where they lie, how they are fetched and read."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

import numpy as np

from dynext.data.download import fetch
from dynext.errors import SourceError


def fashion_file(name: str, root: Path | str | None, download: bool) -> Path:
    """Where a file of Fashion-MNIST lies: under ``root``, else in the usual places; fetched if that is allowed.

    Raises:
        SourceError: it is nowhere, cannot be fetched, or is another file than it should be.
    """
    cache = Path(os.environ.get("DYNEXT_CACHE", Path.home() / ".cache" / "dynext")) / "fashion-mnist"
    folders = [Path("/usr/share/datasets/fashion-mnist"), Path("data/FashionMNIST/raw"), cache]
    if root is not None:
        folders = [Path(root), Path(root) / "FashionMNIST" / "raw"]
    for folder in folders:
        for candidate in (folder / name, folder / name.removesuffix(".gz")):
            if candidate.exists():
                return candidate
    if download:
        from torchvision.datasets import FashionMNIST

        url, md5 = FashionMNIST.mirrors[0] + name, dict(FashionMNIST.resources)[name]
        return fetch(url, Path(root) / name if root else cache / name, md5)
    raise SourceError(
        f"Fashion-MNIST ({name}) is in none of {', '.join(map(str, folders))}; "
        f"install Debian's dataset-fashion-mnist, name its folder, or allow the download (download=True)"
    )


def read_idx(path: Path) -> np.ndarray:
    """One file of the IDX format: two zero bytes, type (8 is uint8), rank, sizes as big-endian uint32, bytes.

    Raises:
        SourceError: the file is damaged.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if raw[:3] != b"\0\0\x08":
            raise ValueError("no IDX file of bytes")
        rank = raw[3]
        sizes = np.frombuffer(raw, ">u4", rank, 4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(sizes).copy()
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise SourceError(f"{path} is damaged ({error}); fetch it again") from error
