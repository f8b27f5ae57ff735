"""Names of classes with their numbers, out of a list, a mapping, or one of the files that people keep them in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynext.data.image_files import is_number
from dynext.errors import SourceError

FILE = "class_to_idx.json"
"""Beside the sub-folders it says which class each of them is, as torchvision's attribute of that name does."""
INSIDE = ("class_to_idx", "label2id", "id2label", "classes", "class_names", "names")
"""Keys under which larger files, such as Hugging Face's ``config.json``, keep the list."""


@dataclass(frozen=True, kw_only=True)
class ClassList:
    """Names and the number of each; a class may have several."""

    pairs: tuple[tuple[str, int], ...]
    count: int

    @classmethod
    def of(cls, classes: Classes) -> ClassList:
        """Raises SourceError when it is no list of classes, or a file that holds none."""
        if isinstance(classes, ClassList):
            return classes
        if isinstance(classes, bool) or (isinstance(classes, int) and classes < 1):
            raise SourceError(f"classes={classes!r}; give the number of classes, their names, or a file with them")
        if isinstance(classes, int):
            return cls(pairs=(), count=classes)
        if isinstance(classes, Path | str):
            return read_classes(Path(classes))
        return _listed(dict(classes) if isinstance(classes, Mapping) else list(classes), "classes")

    def name(self, number: int) -> str:
        """What a message calls a class."""
        return next((name for name, own in self.pairs if own == number), str(number))


Classes = int | Sequence[str] | Mapping[str, int] | Path | str | ClassList
"""What is known of a net's classes: how many, their names in order or with their numbers, or a file with these."""


def read_classes(path: Path) -> ClassList:
    """The classes in a file: JSON (a list of names, ``{name: number}`` or ``{number: name}``), or a name a line.

    Raises:
        SourceError: no such file, or no list of classes in it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"{path} holds no class names that can be read ({error}); give a text or a JSON file"
        ) from error
    if path.suffix.lower() != ".json":
        return _listed(text.rstrip().splitlines(), path)
    try:
        held = json.loads(text)
    except ValueError as error:
        raise SourceError(f"{path} is no JSON ({error}); write a list of class names, or name: number") from error
    for key in INSIDE:
        if isinstance(held, dict) and isinstance(held.get(key), dict | list):
            held = held[key]
            break
    return _listed(held, path)


def _listed(held: Any, source: Path | str) -> ClassList:
    pairs = _pairs(held)
    good = all(isinstance(name, str) and name.strip() and type(number) is int and number >= 0 for name, number in pairs)
    if not pairs or not good:
        raise SourceError(
            f"{source} is no list of classes; give each a name: in order, as name: number, or as number: name, "
            f"counted from 0"
        )
    return ClassList(
        pairs=tuple((name.strip(), number) for name, number in pairs), count=1 + max(number for _, number in pairs)
    )


def _pairs(held: Any) -> list[tuple[Any, Any]]:
    """Names with numbers; what is no list of any known form has neither text nor number in it."""
    if isinstance(held, list):
        return [(name, number) for number, name in enumerate(held)]
    if not isinstance(held, dict):
        return []
    if all(type(number) is int for number in held.values()):
        return list(held.items())
    if not all(is_number(str(key)) for key in held):
        return [(None, None)]
    # ImageNet's usual file gives each number a WordNet id and a name
    return [(name, int(key)) for key, value in held.items() for name in (value if isinstance(value, list) else [value])]
