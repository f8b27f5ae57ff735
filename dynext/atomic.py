"""Files and folders that are either the old one or the new one, never half of each, wherever they lie.

The place may be a link, a mount point, or a folder beside which nothing can be written: what is new is put together
inside the folder that is there, and nothing but files is moved. A full or forbidden disk is told in one line.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from dynext.errors import ArtifactError, DiskError, DynextError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_ELSEWHERE = (errno.EXDEV, errno.EBUSY, errno.ENOTEMPTY, errno.EEXIST)
"""Why one place cannot become another at once: another disk, a mount point, something there meanwhile."""
_FULL_IN_WORDS = re.compile(r"No space left|Disk quota|File too large|unexpected pos \d+ vs|PytorchStreamWriter failed")
"""What torch and safetensors say of a full disk, in errors of their own kinds."""
_BEFORE = ".before"
_PROBE_BYTES = 1 << 16


@contextmanager
def replaced_file(path: Path | str) -> Iterator[Path]:
    """A file to write, which takes the place of ``path`` at the end of the block and vanishes on an error.

    The folder is made where it is missing, a link stays one, and the file gets the mode that any new file of this user
    has.

    Raises:
        DiskError: the disk is full, or one may not write there.
    """
    real = Path(os.path.realpath(path))
    partial = real.with_name(f".{real.name}.{_writer()}")
    with _told(Path(path), real.parent):
        real.parent.mkdir(parents=True, exist_ok=True)
        if real.is_dir():
            raise DiskError(f"{path} is a folder; name a file")
        try:
            mode = _mode_of_new_file(partial)
            yield partial
            partial.chmod(mode)  # safetensors makes files that only their owner may read
            _move(partial, real)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def replaced_folder(folder: Path, *, mark: str, owned: Collection[str]) -> Iterator[Path]:
    """A folder to write into, whose files take the place of those in ``folder`` at the end of the block, all or none;
    it vanishes on an error.

    Args:
        mark: the file that makes a folder ours; one that has files but not this one is refused. It goes first and comes
            last, so that whoever looks in between sees no net rather than half a one.
        owned: patterns (``"*.onnx"``) of the files that are replaced; others in ``folder`` stay.

    Raises:
        ArtifactError: ``folder`` is a file, or holds something else.
        DiskError: the disk is full, or one may not write there.
    """
    check_replaceable(folder, mark)
    real = Path(os.path.realpath(folder))
    inside = real.is_dir()
    partial = real / f".{_writer()}.partial" if inside else real.with_name(f".{real.name}.{_writer()}.partial")
    with _told(folder, real if inside else real.parent):
        real.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            probe = partial / ".mode"
            mode = _mode_of_new_file(probe)
            probe.unlink()
            yield partial
            for written in [path for path in partial.rglob("*") if path.is_file()]:
                written.chmod(mode)
            _place(partial, real, mark, owned)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def check_replaceable(folder: Path, mark: str) -> None:
    """Raises ArtifactError: ``folder`` is a file, a link to nowhere, or holds something else."""
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is a file; name a folder")
    if folder.is_symlink() and not folder.exists() and not Path(os.path.realpath(folder)).parent.is_dir():
        raise ArtifactError(f"{folder} is a link to {folder.readlink()}, which is not there; name another folder")
    if folder.exists() and not (folder / mark).exists():
        foreign = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        if foreign:
            raise ArtifactError(
                f"{folder} holds {foreign[0]} and no {mark}; name a new folder, nothing there was touched"
            )


def check_writable(place: Path, needed: int = 0) -> None:
    """That files can be written in the folder ``place``, before hours of work and not after; it need not exist yet.

    Args:
        needed: bytes that will be.

    Raises:
        DiskError: a file stands in the way, one may not write there, or the disk is full.
    """
    real = Path(os.path.realpath(place))
    there = next(path for path in (real, *real.parents) if path.exists())
    if not there.is_dir():
        raise DiskError(f"{there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise DiskError(f"you may not write in {there}; name a folder elsewhere")
    with _told(place, there), tempfile.TemporaryFile(dir=there) as probe:
        probe.write(bytes(_PROBE_BYTES))
        probe.flush()
        os.fsync(probe.fileno())  # some disks say only now that they are full
    free = shutil.disk_usage(there).free
    if free < needed:
        raise DiskError(
            f"the disk of {there} has {free / 1e6:,.0f} MB left, about {needed / 1e6:,.0f} are needed; make room, or "
            f"name a folder elsewhere"
        )


def disk_fault(error: BaseException, there: Path | None = None) -> str | None:
    """Why nothing could be written, in words, where ``error`` or what led to it says so.

    Args:
        there: a missing permission counts in this folder only; without it nowhere.
    """
    seen: BaseException | None = error
    while seen is not None:
        if (isinstance(seen, OSError) and seen.errno in _FULL) or _FULL_IN_WORDS.search(str(seen)):
            return "the disk is full; make room, or name a place on another disk"
        if isinstance(seen, OSError) and seen.errno in _FORBIDDEN and _lies_in(seen.filename, there):
            return f"{seen.strerror}; name a place where you may write"
        seen = seen.__cause__ or seen.__context__
    return None


def _lies_in(name: str | Path | None, there: Path | None) -> bool:
    return name is not None and there is not None and Path(os.path.realpath(name)).is_relative_to(there)


@contextmanager
def _told(path: Path, there: Path) -> Iterator[None]:
    """What the disk refuses, as one line about ``path``."""
    try:
        yield
    except Exception as error:
        ours = isinstance(error, DynextError) and not isinstance(error, DiskError)
        reason = None if ours else disk_fault(error, there)
        if reason is None:
            raise
        raise DiskError(f"{path} cannot be written: {reason}. What was there before is as it was") from error


def _writer() -> str:
    return f"{os.getpid()}-{threading.get_ident()}"


def _mode_of_new_file(path: Path) -> int:
    """Made and looked at, as reading the umask means changing it for all threads."""
    path.touch()
    return path.stat().st_mode & 0o777


def _move(partial: Path, path: Path) -> None:
    try:
        os.replace(partial, path)
    except OSError as error:
        if error.errno not in _ELSEWHERE:
            raise
        shutil.copyfile(partial, path)  # a file that is itself a mount point


def _place(partial: Path, folder: Path, mark: str, owned: Collection[str]) -> None:
    """The files of ``partial`` into ``folder``; on any error, an interruption too, what was there is back."""
    if not folder.exists():
        try:
            partial.rename(folder)
        except OSError as error:
            if error.errno not in _ELSEWHERE:
                raise
            folder.mkdir(exist_ok=True)
        else:
            return
    new = {path.name for path in partial.iterdir()}
    old = [p.name for p in folder.iterdir() if p.name in new or any(fnmatch(p.name, pattern) for pattern in owned)]
    before = partial / _BEFORE
    before.mkdir()
    moved: list[tuple[Path, Path]] = []
    steps = [(folder / name, before / name) for name in sorted(old, key=lambda name: name != mark)]
    steps += [(partial / name, folder / name) for name in sorted(new, key=lambda name: name == mark)]
    try:
        for source, target in steps:
            moved.append((source, target))
            os.replace(source, target)
    except BaseException:
        for source, target in reversed(moved):
            with suppress(FileNotFoundError):  # the step that failed
                os.replace(target, source)
        raise
