"""Files and folders that are either the old one or the new one, never half of each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from dynext.errors import ArtifactError


@contextmanager
def replaced_file(path: Path | str) -> Iterator[Path]:
    """A file to write, which takes the place of ``path`` at the end of the block and vanishes on an error.

    The folder is made where it is missing, and the file gets the mode that any new file of this user has.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        _as_any_new_file(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _as_any_new_file(path: Path) -> None:
    """safetensors makes files that only their owner may read; who else may is for the umask to say."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


@contextmanager
def replaced_folder(folder: Path, *, mark: str, owned: Collection[str]) -> Iterator[Path]:
    """A folder to write into, which takes the place of ``folder`` at the end of the block and vanishes on an error.

    Args:
        mark: the file that makes a folder ours; one that has files but not this one is refused.
        owned: patterns (``"*.onnx"``) of the files that are replaced; others in ``folder`` move over.

    Raises:
        ArtifactError: ``folder`` is a file, or holds something else.
    """
    _check_replaceable(folder, mark)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for written in partial.iterdir():
            _as_any_new_file(written)
        if folder.exists():
            _swap(partial, folder, owned)
        else:
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap(partial: Path, folder: Path, owned: Collection[str]) -> None:
    before = folder.with_name(f".{folder.name}.{os.getpid()}.before")
    folder.rename(before)
    try:
        partial.rename(folder)
    except OSError:
        before.rename(folder)
        raise
    for other in before.iterdir():
        if not any(fnmatch(other.name, pattern) for pattern in owned):
            other.rename(folder / other.name)
    shutil.rmtree(before)


def _check_replaceable(folder: Path, mark: str) -> None:
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is a file; name a folder")
    if folder.exists() and not (folder / mark).exists():
        foreign = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        if foreign:
            raise ArtifactError(
                f"{folder} holds {foreign[0]} and no {mark}; name a new folder, nothing there was touched"
            )
