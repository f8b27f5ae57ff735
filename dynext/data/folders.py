"""Folders of image files as samples, with and without classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dynext.data.class_folders import class_numbers
from dynext.data.class_lists import Classes
from dynext.data.image_files import SUFFIXES, class_folders, image_files
from dynext.data.image_pixels import read_images, unreadable
from dynext.data.samples import Samples
from dynext.errors import SourceError
from dynext.types import InputSpec

log = logging.getLogger("dynext")
"""What is said here is a warning, which Python prints unless told otherwise."""


def images(
    folder: Path | str,
    spec: InputSpec,
    *,
    labelled: bool = False,
    classes: Classes | None = None,
    limit: int | None = None,
    strict: bool = False,
) -> Samples:
    """Image files under ``folder`` as samples of ``spec.shape``: short side resized, center cropped, gray or color.

    With ``labelled`` each sub-folder of ``folder`` is a class. Which one, its name says, matched with the names of
    ``classes`` whatever became of case, separators and accents, or by its WordNet id; or its number, if sub-folders are
    called ``0``, ``1`` and so on; or a file ``class_to_idx.json`` beside them. Only where nothing better is known and
    none is missing, it is the rank of the name. What is less than certain is said, by the logger ``dynext``.

    Files that cannot be read are skipped, and named likewise.

    Args:
        classes: of the net: its names in order (``opened.class_names``), or how many there are
            (``opened.num_classes``); or a mapping from names to numbers, or a file with names (JSON, or one a line),
            which then go before ``class_to_idx.json``.
        limit: so many files, spread evenly over all of them.
        strict: refuse a file that cannot be read.

    Raises:
        SourceError: no folder, no image in it that can be read, or sub-folders whose classes cannot be told.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SourceError(f"there is no folder {folder}; name one that holds images")
    files = image_files(folder)
    if not files:
        raise SourceError(f"no image in {folder} ({' '.join(sorted(SUFFIXES))}); name a folder that holds some")
    y = _labels(folder, files, classes) if labelled else None
    if limit is not None and limit < len(files):
        # Spread over the folder: files are often sorted by class, and the first ones then show one class alone.
        chosen = [i * len(files) // limit for i in range(limit)]
        files, y = [files[i] for i in chosen], None if y is None else y[chosen]
    pixels, failed = read_images(files, spec, strict=strict)
    if failed:
        log.warning("%s", unreadable(failed, len(files)))
        y = None if y is None else y[[i for i in range(len(files)) if i not in failed]]
    return Samples(pixels=pixels, y=y, spec=spec)


def _labels(folder: Path, files: Sequence[Path], classes: Classes | None) -> Tensor:
    """The class number ``[n]`` of each of ``files``, by the sub-folder that it lies in."""
    inside = [path.relative_to(folder).parts for path in files]
    loose = [parts[0] for parts in inside if len(parts) < 2]
    if loose:
        raise SourceError(
            f"{folder} holds images outside sub-folders, such as {loose[0]}; labelled samples need one sub-folder a "
            f"class"
        )
    names = {parts[0] for parts in inside}
    there = class_folders(folder)
    holding, empty = [name for name in there if name in names], [name for name in there if name not in names]
    numbered = class_numbers(folder, holding, empty, classes)
    for note in numbered.notes:
        log.warning("%s", note)
    return torch.tensor([numbered.number[parts[0]] for parts in inside])
