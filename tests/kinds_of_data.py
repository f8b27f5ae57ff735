"""The same labelled images in every form that people have them in."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as pil
from pixels import COLOR, some_pixels
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

N = 40
X = some_pixels(N)
"""``[n h w c]``."""
Y = np.arange(N) % 5
FIRST = torch.from_numpy(X).permute(0, 3, 1, 2)
LABELS = torch.from_numpy(Y)
UNIT = FIRST.float() / 255
WANTED = COLOR.normalize(FIRST)


class Image:
    """A column's type, called as in Hugging Face's `datasets`."""


class ClassLabel:
    """Likewise."""


class Table:
    """As a data set of Hugging Face: mappings by number, and types of columns."""

    def __init__(self, rows: list[dict[str, Any]], features: dict[str, Any] | None = None) -> None:
        self.rows, self.features = rows, features

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.rows[i]


class Items(Dataset[Any]):
    """As of torchvision."""

    def __init__(self, item: Callable[[int], Any]) -> None:
        self.item = item

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        if i >= N:
            raise IndexError(i)
        return self.item(i)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return ((UNIT[i], int(Y[i])) for i in range(N))


def picture(i: int) -> Any:
    return pil.fromarray(X[i])


def png(i: int) -> dict[str, Any]:
    written = io.BytesIO()
    picture(i).save(written, "PNG")
    return {"bytes": written.getvalue(), "path": None}


def unit(i: int) -> tuple[torch.Tensor, int]:
    return UNIT[i], int(Y[i])


def listed(batch: list[Any]) -> tuple[list[Any], list[int]]:
    return [image for image, _ in batch], [label for _, label in batch]


KINDS: dict[str, Callable[[], Any]] = {
    "uint8 arrays, channels last": lambda: (X, Y),
    "uint8 arrays, channels first": lambda: (X.transpose(0, 3, 1, 2), Y),
    "float arrays": lambda: (X / 255, Y.astype(np.int32)),
    "float32 arrays of [0, 255]": lambda: (X.astype(np.float32), Y),
    "half precision": lambda: (UNIT.double(), LABELS),
    "int64 tensors": lambda: (FIRST.long(), LABELS.to(torch.uint8)),
    "uint16 arrays": lambda: (X.astype(np.uint16), Y),
    "big-endian arrays": lambda: (X.astype(">f4"), Y.astype(">i8")),
    "flipped twice": lambda: (X[::-1].copy()[::-1], Y[:, None]),
    "tensors of [0, 1]": lambda: (UNIT, LABELS),
    "a list of two tensors": lambda: [FIRST, LABELS],
    "labels as a list": lambda: (UNIT, Y.tolist()),
    "labels as floats": lambda: (UNIT, LABELS.float()),
    "labels one-hot": lambda: (UNIT, torch.eye(5)[LABELS]),
    "arrays by name": lambda: {"x": X, "y": Y},
    "TensorDataset": lambda: TensorDataset(FIRST, LABELS),
    "Dataset of tensors": lambda: Items(unit),
    "Dataset of Pillow's images": lambda: Items(lambda i: (picture(i), int(Y[i]))),
    "Dataset of arrays": lambda: Items(lambda i: (X[i], Y[i])),
    "Dataset of mappings": lambda: Items(lambda i: {"pixel_values": UNIT[i], "labels": int(Y[i])}),
    "Dataset of three": lambda: Items(lambda i: (UNIT[i], int(Y[i]), f"{i}.png")),
    "Subset": lambda: Subset(Items(unit), range(N)),
    "list of pairs": lambda: [(UNIT[i], int(Y[i])) for i in range(N)],
    "two lists": lambda: ([picture(i) for i in range(N)], Y.tolist()),
    "DataLoader": lambda: DataLoader(Items(unit), batch_size=7),
    "DataLoader that shuffles": lambda: DataLoader(Items(unit), batch_size=7, shuffle=True, drop_last=True),
    "DataLoader with a sampler": lambda: DataLoader(Items(unit), sampler=SubsetRandomSampler(range(N))),
    "DataLoader of mappings": lambda: DataLoader(Items(lambda i: {"img": UNIT[i], "label": int(Y[i])}), batch_size=9),
    "DataLoader of lists": lambda: DataLoader(
        Items(lambda i: (picture(i), int(Y[i]))), batch_size=8, collate_fn=listed
    ),
    "DataLoader of a stream": lambda: DataLoader(Stream(), batch_size=7),
    "DataLoader of whole batches": lambda: DataLoader(
        [(UNIT[i : i + 8], LABELS[i : i + 8]) for i in range(0, N, 8)], batch_size=None, shuffle=True
    ),
    "IterableDataset": Stream,
    "Hugging Face, decoded": lambda: Table(
        [{"id": i, "photo_of": picture(i), "kind": int(Y[i])} for i in range(N)],
        {"id": object(), "photo_of": Image(), "kind": ClassLabel()},
    ),
    "Hugging Face, undecoded": lambda: Table([{"image": png(i), "label": int(Y[i])} for i in range(N)], {}),
    "Hugging Face, columns of other names": lambda: Table([{"scan": UNIT[i], "breed": int(Y[i])} for i in range(N)]),
    "Hugging Face, lists": lambda: Table([{"image": X[i].tolist(), "label": int(Y[i])} for i in range(N)]),
}


def written(folder: Path) -> dict[str, Path]:
    """Files and folders of them, with labels."""
    np.savez(folder / "all.npz", x=X, y=Y)
    for i in range(N):
        (folder / "images" / str(Y[i])).mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / "images" / str(Y[i]) / f"{i:02}.png")
    return {"file": folder / "all.npz", "folder": folder / "images"}
