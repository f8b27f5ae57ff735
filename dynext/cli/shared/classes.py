"""Labelled samples for commands that learn classes from a few of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast, get_args

import click

from dynext.cli.shared.options import Command
from dynext.data.class_lists import Classes, ClassList
from dynext.data.datasets import array, digits, fashion_mnist, omniglot
from dynext.data.episodes import Episodes, split_classes
from dynext.data.folders import images
from dynext.data.image_files import class_names
from dynext.data.omniglot_files import OmniglotPart
from dynext.data.samples import Samples
from dynext.errors import SourceError
from dynext.types import InputSpec

KINDS = "digits, fashion-mnist, omniglot:PART (background, evaluation, small1, small2), a folder a class, or a .npz."
SPLIT = "class_split"
"""Where provenance says which classes a net was meta-trained on."""


def class_rows(
    data: str, spec: InputSpec, *, root: Path | None = None, download: bool = False, strict: bool = False
) -> Samples:
    """Labelled samples to draw episodes from, as ``spec`` wants them; gray images are repeated over its channels.

    Raises:
        SourceError: nothing there, no labels, or samples that cannot be made to fit.
    """
    kind, _, part = data.partition(":")
    channels, side = spec.shape[0], spec.shape[-1]
    if kind == "digits":
        rows = digits(side=side)
    elif kind == "omniglot":
        rows = omniglot(
            cast("OmniglotPart", part or get_args(OmniglotPart)[0]), root=root, side=side, download=download
        )
    elif kind == "fashion-mnist":
        rows = fashion_mnist("train", root=root, download=download)
    else:
        path = Path(data)
        if not data or not path.exists():
            raise SourceError(f"no {data or 'data'}; give {KINDS}")
        rows = class_folder(path, spec, strict=strict)[0] if path.is_dir() else array(path, spec)
    if rows.y is None:
        raise SourceError(f"the samples of {data} have no labels, and episodes are drawn by class; give them as 'y'")
    gray = rows.pixels.shape[1] == 1 < channels
    return Samples(pixels=rows.pixels.expand(-1, channels, -1, -1) if gray else rows.pixels, y=rows.y, spec=spec)


def class_folder(
    folder: Path, spec: InputSpec, classes: Classes | None = None, *, strict: bool = False
) -> tuple[Samples, tuple[str, ...]]:
    """Samples of a folder with one sub-folder a class, and the classes' names: those of ``classes``, or its own.

    Raises:
        SourceError: no such folder, or a class that is not among ``classes``.
    """
    own = {name: number for number, name in enumerate(class_names(folder))} or None
    rows = images(folder, spec, labelled=True, classes=own if classes is None else classes, strict=strict)
    known = ClassList.of(classes or own or 1)
    return rows, tuple(known.name(number) for number in range(known.count))


def same_data(one: str, other: str) -> bool:
    """Whether two words for a data set mean the same one."""
    return _plain(one) == _plain(other)


def _plain(data: str) -> str:
    if data in ("omniglot", "omniglot:"):
        return f"omniglot:{get_args(OmniglotPart)[0]}"
    return str(Path(data).resolve()) if Path(data).exists() else data


def split_rows(rows: Samples, split: str | None, seed: int) -> tuple[Samples, Samples | None]:
    """Samples of the classes to train on and of those kept apart, by ``"6/4"``; all of them without it.

    Raises:
        SourceError: no such split, or more classes than there are.
    """
    if split is None:
        return rows, None
    try:
        counts = [int(count) for count in split.split("/")]
    except ValueError:
        counts = []
    if len(counts) != 2:
        raise SourceError(f"--classes {split!r}; give how many to train on and how many to keep apart, such as 6/4")
    taught, apart = split_classes(rows, counts, seed=seed)
    return taught, apart


def episode_options(command: Command) -> Command:
    """``--way``, ``--shot`` and ``--queries``; `episodes_of` takes them."""
    positive = click.IntRange(min=1)
    for option in (
        click.option("--queries", type=positive, default=15, show_default=True, help="Images of each to judge on."),
        click.option("--shot", type=positive, default=1, show_default=True, help="Images of each class to learn from."),
        click.option("--way", type=click.IntRange(min=2), default=5, show_default=True, help="Classes of an episode."),
    ):
        command = option(command)
    return command


def episodes_of(rows: Samples, given: dict[str, Any], seed: int) -> Episodes:
    """Episodes as `episode_options` ask."""
    return Episodes(rows=rows, way=given["way"], shot=given["shot"], query=given["queries"], seed=seed)
