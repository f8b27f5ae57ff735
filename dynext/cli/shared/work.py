"""Where an interrupted command keeps what it has done, and finds it again."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
from torch import nn

from dynext.atomic import check_writable
from dynext.data.samples import Samples
from dynext.errors import DiskError, DynextError
from dynext.zeroshot.synth.synthesize import fingerprint

Body = TypeVar("Body", bound=Callable[..., None])

BEGAN = "began"
"""An empty file of each work folder, as old as the work."""
WORTH_KEEPING_S = 60.0
"""Work of so many seconds outlives a refusal: other options, or other images, may go on with it."""
_COPIES = 3
"""Of the net's tensors, what saving it and the state of its training takes at most."""


def work_folder(output: Path, teacher: nn.Module, seen: Samples | None, asked: dict[str, Any]) -> Path:
    """Where an interrupted run is found again, one for each set of arguments, net and images.

    It lies beside ``output``, or in it where that is there already: it may be a mount point, and what lies beside that
    is lost with the container.

    Raises:
        DiskError: there is no room for the net there.
    """
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    digest.update(fingerprint(teacher).encode())
    if seen is not None:
        digest.update(seen.pixels.numpy().tobytes())
    tensors = teacher.state_dict().values()
    check_writable(output, _COPIES * sum(tensor.numel() * tensor.element_size() for tensor in tensors))
    place = output if output.is_dir() else output.absolute().parent
    folder = place / f".{output.absolute().name}.work-{digest.hexdigest()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / BEGAN).touch(exist_ok=True)
    return folder


def forget_work(output: Path) -> None:
    """What was kept for an interrupted run goes."""
    for leftover in _work_folders(output):
        shutil.rmtree(leftover)


def forgets_refused(command: Body) -> Body:
    """A command that leaves no work behind once it is refused, bar what took long: of that it says where it is.

    A full disk is no refusal: the same command goes on when there is room.
    """

    @functools.wraps(command)
    def guarded(*arguments: Any, **given: Any) -> None:
        try:
            command(*arguments, **given)
        except DiskError:
            raise
        except (DynextError, click.ClickException):
            _forget_short(given.get("output") or given["folder"])
            raise

    return guarded  # type: ignore[return-value]


def _forget_short(output: Path) -> None:
    for leftover in _work_folders(output):
        seconds = _spent(leftover)
        if seconds < WORTH_KEEPING_S:
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            click.echo(
                f"Note: {leftover} keeps {seconds / 60:.0f} minutes of work; the command that began it goes on from "
                f"there, or delete that folder.",
                err=True,
            )


def _spent(folder: Path) -> float:
    """Seconds from the beginning of the work to the last file of it."""
    began = folder / BEGAN
    times = [path.stat().st_mtime for path in folder.rglob("*")]
    return max(times) - began.stat().st_mtime if began.exists() else float("inf")


def _work_folders(output: Path) -> Iterator[Path]:
    for place in {output.absolute().parent, output.absolute()}:
        if place.is_dir():
            name = f".{output.absolute().name}.work-"
            yield from [path for path in place.iterdir() if path.name.startswith(name) and path.is_dir()]
