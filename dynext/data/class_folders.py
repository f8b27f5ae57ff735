"""Which class each sub-folder of images is: by its name, by a number as its name, or, at last, by its rank.

The rank of a name is a class number only where nothing better is known and nothing is missing: with one folder less
all later classes would be numbered wrongly, without a word.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dynext.data.class_lists import FILE, Classes, ClassList, read_classes
from dynext.data.class_spellings import imagenet_number, matching, squeezed
from dynext.data.image_files import is_number
from dynext.errors import SourceError

NAMED = 8
"""Classes that a message names; it counts the others."""
PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}


@dataclass(frozen=True, kw_only=True)
class Numbered:
    """The class number of each sub-folder with images, and what the user should know about it."""

    number: dict[str, int]
    notes: tuple[str, ...] = field(default=())


def class_numbers(
    folder: Path, holding: Sequence[str], empty: Sequence[str], classes: Classes | None = None
) -> Numbered:
    """The classes of the sub-folders ``holding`` images; ``empty`` ones say how numbers are counted.

    Numbers that the caller gives, as a mapping or a file, go before those of a file in ``folder``.

    Raises:
        SourceError: some are of no class, two of one, or it cannot be told.
    """
    known = None if classes is None else ClassList.of(classes)
    given = isinstance(classes, Mapping | Path | str | ClassList)
    by_file = (folder / FILE).is_file() and not given
    numbered = _by_file(folder, holding, known) if by_file else _numbered(folder, holding, empty, known)
    twice = _same(numbered.number)
    if twice:
        name = twice[0] if known is None else known.name(numbered.number[twice[0]])
        raise SourceError(f"{folder}: sub-folders {_list(twice)} are one class, {name!r}; put their images in one")
    if known is not None:
        _check_range(folder, numbered.number, known.count)
    missing = _missing(folder, numbered.number, empty, known)
    return Numbered(number=numbered.number, notes=(*numbered.notes, *missing))


def _numbered(folder: Path, holding: Sequence[str], empty: Sequence[str], known: ClassList | None) -> Numbered:
    integers = all(map(is_number, holding))
    if known is not None and known.pairs:
        by_name = _by_name(holding, known)
        if len(by_name) == len(holding):
            return Numbered(number=by_name)
        if not integers or any(is_number(name) for name, _ in known.pairs):
            raise _unmatched(folder, holding, known, by_name)
    if integers:
        return _by_number(folder, holding, empty, None if known is None else known.count)
    return _by_rank(folder, holding, empty, None if known is None else known.count)


def _by_file(folder: Path, holding: Sequence[str], known: ClassList | None) -> Numbered:
    """By ``class_to_idx.json``, unless the net's own names say otherwise."""
    listed = read_classes(folder / FILE)
    number = _by_name(holding, listed)
    if len(number) < len(holding):
        raise _unmatched(folder, holding, listed, number)
    own = number if known is None or not known.pairs else _by_name(holding, known)
    differing = [name for name in holding if own.get(name, number[name]) != number[name]]
    if len(own) == len(holding) and differing:
        name = differing[0]
        raise SourceError(
            f"{folder / FILE} gives {name!r} the number {number[name]}, the net's own names give it {own[name]}; "
            f"remove the file, or put it right"
        )
    return Numbered(number=number, notes=(f"{folder}: classes are numbered by its {FILE}",))


def _by_name(holding: Sequence[str], known: ClassList) -> dict[str, int]:
    """Those whose name is one class's.

    Raises:
        SourceError: a name is that of several classes.
    """
    number = {}
    for name in holding:
        numbers = matching(name, known.pairs)
        if len(numbers) > 1:
            alike = _list([f"{known.name(one)} ({one})" for one in numbers], quoted=False)
            raise SourceError(
                f"sub-folder {name!r} may be any of the classes {alike}; say which in a file {FILE} beside it"
            )
        if numbers:
            number[name] = numbers[0]
    return number


def _by_number(folder: Path, holding: Sequence[str], empty: Sequence[str], count: int | None) -> Numbered:
    """Class numbers as names, counted from 0, or from 1 where that is certain."""
    own = {name: int(name) for name in holding}
    there = sorted({int(name) for name in (*holding, *empty) if is_number(name)})
    beyond = count is not None and there[-1] > count
    if 0 in there or beyond or not (there[0] == 1 or there[-1] == count):
        return Numbered(number=own)
    whole = count is None and there == list(range(1, len(there) + 1))
    if there[-1] != count and not whole:
        raise SourceError(
            f"{folder}: sub-folders are called {there[0]} to {there[-1]}, and there is no 0"
            f"{'' if count is None else f', for {count} classes'}: it cannot be told whether they count from 0 or "
            f"from 1; add the missing folder, if empty ({'0' if count is None else f'0 or {count}'}), or a {FILE}"
        )
    note = f"{folder}: sub-folders count from 1 (there is no 0), so {there[0]} is class {there[0] - 1}"
    return Numbered(number={name: value - 1 for name, value in own.items()}, notes=(note,))


def _by_rank(folder: Path, holding: Sequence[str], empty: Sequence[str], count: int | None) -> Numbered:
    names = sorted((*holding, *empty))
    wordnet = {name: imagenet_number(name) for name in holding}
    if count == 1000 and None not in wordnet.values():
        note = f"{folder}: sub-folders are WordNet ids, numbered as ImageNet's 1,000 classes are"
        return Numbered(number={name: number for name, number in wordnet.items() if number is not None}, notes=(note,))
    if count is None and empty:  # left out, it would shift the numbers of all classes after it
        raise SourceError(
            f"sub-folder {folder / min(empty)} holds no image; put some of its class there, remove it, or give the "
            f"names of all classes"
        )
    if count is not None and len(names) != count:
        raise SourceError(
            f"{folder} has {len(names)} sub-folders, the net {count} classes without names: which is which cannot be "
            f"told; call them 0 to {count - 1}, or put a {FILE} beside them"
        )
    if sorted(names, key=_natural) != names:
        raise SourceError(
            f"{folder}: sub-folders {_list(names[:3])} ... may be numbered by the alphabet or by the numbers in "
            f"their names; put a {FILE} beside them"
        )
    told = _list([f"{name} is {rank}" for rank, name in enumerate(names)], quoted=False)
    why = "nothing says which classes they are" if count is None else "the net keeps no names of its classes"
    note = f"{folder}: classes are numbered by the order of their sub-folders' names, as {why}: {told}"
    return Numbered(number={name: names.index(name) for name in holding}, notes=(note,))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key by which ``class_2`` comes before ``class_10``."""
    parts, key = "", []
    for letter in (*name, ""):
        if parts and (not letter or letter.isdecimal() != parts[-1].isdecimal()):
            key.append((0, int(parts), "") if parts.isdecimal() else (1, 0, parts))
            parts = ""
        parts += letter
    return key


def _unmatched(folder: Path, holding: Sequence[str], known: ClassList, number: dict[str, int]) -> SourceError:
    strange = [name for name in holding if name not in number]
    free = {name: own for name, own in known.pairs if own not in number.values()}
    if {name.casefold() for name in holding} <= PARTS:
        return SourceError(
            f"{folder} holds parts of a data set, {_list(strange)}, each with classes of its own; name one of them, "
            f"such as {folder / strange[0]}"
        )
    hints = [f"did you mean {near!r} by {name!r}?" for name in strange[:NAMED] if (near := _nearest(name, free))]
    return SourceError(
        f"{folder}: {_count(strange, 'sub-folder')} none of the classes, {_list(strange)}; classes without a "
        f"sub-folder: {_list(list(free))}. {' '.join([*hints, 'Rename'])} them, take them out, or say which class each "
        f"is in a file {FILE} beside them"
    )


def _nearest(name: str, free: dict[str, int]) -> str | None:
    plain = {squeezed(other): other for other in free}
    return plain[close[0]] if (close := difflib.get_close_matches(squeezed(name), plain, 1, 0.5)) else None


def _same(number: dict[str, int]) -> list[str]:
    """The first sub-folders that share a class."""
    seen: dict[int, str] = {}
    for name, own in number.items():
        if own in seen:
            return [seen[own], name]
        seen[own] = name
    return []


def _check_range(folder: Path, number: dict[str, int], count: int) -> None:
    beyond = [name for name, own in number.items() if own >= count]
    if beyond:
        raise SourceError(
            f"{folder}: {_count(beyond, 'sub-folder')} of no class, {_list(beyond)}, where there are {count}, "
            f"0 to {count - 1}; take them out, or say which class each is in a file {FILE} beside them"
        )


def _missing(folder: Path, number: dict[str, int], empty: Sequence[str], known: ClassList | None) -> list[str]:
    """A line about classes without an image, if there are any."""
    told = [f"no image in {_list(empty)}"] if empty else []
    if known is not None and len(number) < known.count:
        lacking = [known.name(own) for own in range(known.count) if own not in number.values()]
        told.insert(0, f"images of {len(number)} of {known.count:,} classes, none of {_list(lacking)}")
    return [f"{folder}: {'; '.join(told)}"] if told else []


def _count(names: Sequence[str], what: str) -> str:
    return f"1 {what} is" if len(names) == 1 else f"{len(names):,} {what}s are"


def _list(names: Sequence[str], *, quoted: bool = True) -> str:
    shown = ", ".join(repr(name) if quoted else name for name in names[:NAMED]) or "none"
    return shown + (f" and {len(names) - NAMED:,} more" if len(names) > NAMED else "")
