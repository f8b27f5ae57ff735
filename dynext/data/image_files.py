"""Images as files: which files of a folder are images, and which of its sub-folders are classes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from dynext.errors import SourceError, line

SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
    ".jp2", ".avif", ".heic", ".heif",
}  # fmt: skip
"""Files called so are images; one that this Pillow cannot read is told of, not passed over."""
HIDDEN = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
"""What archives, network drives and file systems leave in folders, besides names with a dot in front."""


def image_files(folder: Path | str) -> list[Path]:
    """Image files under ``folder`` in order, links followed, without the hidden ones that file managers leave there.

    Raises:
        SourceError: a folder that may not be read.
    """
    return list(_walk(Path(folder), frozenset()))


def class_folders(folder: Path | str) -> tuple[str, ...]:
    """The sub-folders of ``folder`` in order, empty ones too; numbers are ordered as such."""
    names = [entry.name for entry in _entries(Path(folder)) if _is_folder(entry)]
    return tuple(sorted(names, key=int) if all(map(is_number, names)) else sorted(names))


def class_names(folder: Path | str) -> tuple[str, ...]:
    """The sub-folders of ``folder`` that hold an image, in the order of `class_folders`."""
    folder = Path(folder)
    holding = {path.relative_to(folder).parts[0] for path in image_files(folder)}
    return tuple(name for name in class_folders(folder) if name in holding)


def is_visible(name: str) -> bool:
    """Whether a file or a folder of this name is not a hidden one."""
    return not name.startswith(".") and name not in HIDDEN


def is_number(name: str) -> bool:
    """Whether a folder's name is a class number: ``7`` or ``007``."""
    return name.isascii() and name.isdigit()


def _walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """Depth first; a link to a folder that it lies in itself would never end, and is not followed."""
    place = folder.stat()
    here = (place.st_dev, place.st_ino)
    if here in above:
        return
    for entry in _entries(folder):
        path = folder / entry.name
        if _is_folder(entry):
            yield from _walk(path, above | {here})
        elif path.suffix.lower() in SUFFIXES and (path.is_file() or path.is_symlink()):  # no pipe; a torn link is told
            yield path


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if is_visible(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(f"folder {folder} cannot be read ({line(error)}); name one that can") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
