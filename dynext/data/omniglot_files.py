"""The files that Omniglot comes in: where they lie, how they are fetched and read.

The original layout is ``images_background/Alphabet/character01/0108_01.png``, as a folder or as the zip of one.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from dynext.data.download import fetch
from dynext.errors import SourceError

OmniglotPart = Literal["background", "evaluation", "small1", "small2"]
"""Lake's 30 and 20 alphabets, and the two small sets of five and six background alphabets."""

FILES = {
    "background": "images_background",
    "evaluation": "images_evaluation",
    "small1": "images_background_small1",
    "small2": "images_background_small2",
}
SMALL_MD5 = {
    "images_background_small1": "e704a628b5459e08445c13499850abc4",
    "images_background_small2": "b75a71a51d3b13f821f212756fe481fd",
}
"""Of the zips that torchvision does not know."""


def omniglot_images(
    part: OmniglotPart, root: Path | str | None, side: int, download: bool
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Pixels ``[n side side]`` (uint8, strokes white on black), class numbers ``[n]``, and ``Alphabet/character``.

    Raises:
        SourceError: no such part, it is nowhere, cannot be fetched, is another file, or is damaged.
    """
    if part not in get_args(OmniglotPart):
        raise SourceError(f"no part {part!r} of Omniglot; give one of {', '.join(get_args(OmniglotPart))}")
    if side < 4:
        raise SourceError(f"side={side}; give 4 pixels or more")
    place = _place(FILES[part], root, download)
    pixels: list[np.ndarray] = []
    labels: list[int] = []
    names: list[str] = []
    for name, content in _files(place):
        _check_part(name, part)
        label = "/".join(Path(name).parts[-3:-1])
        if not names or names[-1] != label:
            names.append(label)
        labels.append(len(names) - 1)
        pixels.append(_strokes(name, content, side))
    if not pixels:
        raise SourceError(
            f"{place} holds no Alphabet/character01/*.png; name Omniglot's own zip, or what it unpacks to"
        )
    return np.stack(pixels), np.array(labels, dtype=np.int64), tuple(names)


def _check_part(name: str, part: OmniglotPart) -> None:
    """Refuse files of another part: with one zip named for both, a net would be tested on what it was trained on."""
    above = Path(name).parts[-4:-3]
    strange = [known for known, stem in FILES.items() if (stem,) == above and known != part]
    if strange:
        raise SourceError(f"{name} is of part {strange[0]!r}, asked for was {part!r}; name the zip or folder of that")


def _place(stem: str, root: Path | str | None, download: bool) -> Path:
    """The folder or the zip of this part."""
    cache = Path(os.environ.get("DYNEXT_CACHE", Path.home() / ".cache" / "dynext")) / "omniglot"
    folder = cache if root is None else Path(root)
    if folder.is_file():
        return folder
    short = stem.replace("images_background_small", "omniglot_small")
    inner = [folder, folder / "omniglot-py", folder / "python"]
    for where in inner:
        for candidate in (where / stem, where / f"{stem}.zip", where / f"{short}.zip"):
            if candidate.exists():
                return candidate
    if root is not None and any(folder.glob("*/character*/*.png")):
        return folder
    if download:
        from torchvision.datasets import Omniglot

        url, md5 = f"{Omniglot.download_url_prefix}/{stem}.zip", {**Omniglot.zips_md5, **SMALL_MD5}[stem]
        return fetch(url, folder / f"{stem}.zip", md5)
    raise SourceError(
        f"Omniglot ({stem}) is in none of {', '.join(map(str, inner))}; give its folder or zip (root=...), "
        f"or allow the download (download=True)"
    )


def _files(place: Path) -> Iterator[tuple[str, bytes]]:
    """Image files in the order of their names, so that class numbers do not depend on the file system."""
    if place.is_dir():
        for path in sorted(place.glob("**/character*/*.png")):
            if not path.name.startswith("."):  # file managers leave such files
                yield str(path), path.read_bytes()
        return
    try:
        with zipfile.ZipFile(place) as archive:
            for name in sorted(archive.namelist()):
                strange = name.startswith("__MACOSX") or Path(name).name.startswith(".")
                if name.endswith(".png") and "/character" in name and not strange:
                    yield name, archive.read(name)
    except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:  # RuntimeError: it needs a password
        raise SourceError(f"{place} is no zip that can be read ({error}); fetch it again") from error


def _strokes(name: str, content: bytes, side: int) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as opened:
            small = opened.convert("L").resize((side, side), Image.Resampling.BILINEAR)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise SourceError(f"{name} is no image that can be read; fetch Omniglot again") from error
    return 255 - np.asarray(small)
