"""Parts that other packages bring, by name: entry points of installed distributions, or parts registered here and now.

A package declares them in its ``pyproject.toml``; wherever it is installed, they are there, on the command line too::

    [project.entry-points."dynext.confidences"]
    gap = "my_package.measures:gap"

Nothing is imported before a part is asked for by name. A package that is broken is named when one of its parts is
asked for, and keeps nobody from the others. A name of dynext's own is never given away.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from dynext.errors import PluginError, line

GROUPS = ("dynext.synthesizers", "dynext.heads", "dynext.gates", "dynext.confidences", "dynext.recipes")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part under its name, not yet imported."""

    name: str
    reference: str
    """``package.module:attribute``."""
    version: str
    """The distribution and its version, such as ``my-package 1.2``; ``registered here`` without one."""
    value: Any = None
    """The part itself where it was registered in this process."""
    rivals: tuple[str, ...] = ()
    """The distributions that offer the name, where there is more than one."""

    def load(self) -> Any:
        """The part, imported.

        Raises:
            PluginError: two packages offer this name, or the package cannot be imported.
        """
        if self.rivals:
            raise PluginError(f"{self.name!r} is offered by {' and by '.join(self.rivals)}; uninstall all but one")
        if self.value is not None:
            return self.value
        try:
            return EntryPoint(self.name, self.reference, "").load()
        except Exception as error:  # a package of somebody else's can fail in any way
            raise PluginError(
                f"{self.name!r} of {self.version} ({self.reference}) cannot be imported ({line(error)}); "
                f"repair or uninstall that package"
            ) from error


_registered: dict[str, dict[str, Part]] = {group: {} for group in GROUPS}


def register(group: str, name: str, part: Any) -> None:
    """Offer ``part`` under ``name`` in this process, in place of a part of that name registered before.

    For notebooks and tests; an entry point does the same in every process.

    Raises:
        PluginError: no such group, or a name that is no word.
    """
    _check_group(group)
    if not name or not name.replace("-", "_").replace(".", "_").isidentifier():
        raise PluginError(f"name {name!r}; give a word of letters, digits, - and _")
    if part is None:
        raise PluginError(f"nothing to register as {name!r}; give the part itself")
    _registered[group][name] = Part(name=name, reference=reference(part), version="registered here", value=part)


def registered(group: str) -> Mapping[str, Part]:
    """Every part of ``group`` by its name, none of them imported; those of this process first.

    Raises:
        PluginError: no such group.
    """
    _check_group(group)
    return {**_installed(group, _places()), **_registered[group]}


def reference(part: Any) -> str:
    """Where ``part`` was defined, ``package.module:name``; of an object that has no name, its class."""
    named = part if hasattr(part, "__qualname__") else getattr(part, "func", type(part))
    return f"{getattr(named, '__module__', '?')}:{getattr(named, '__qualname__', type(part).__qualname__)}"


def identity(part: Any) -> str:
    """`reference` of ``part`` and a digest of its code and figures: what tells a run from one with another part.

    Two functions written in one place, a function whose text was changed, and one with other arguments bound to it
    (`functools.partial`, a closure, an object's fields) are told apart.
    """
    return f"{reference(part)}, {digest(part)}"


def digest(part: Any) -> str:
    """``code`` and eight hexadecimal digits that change with the code and the figures of ``part``."""
    return f"code {hashlib.sha256(repr(_figures(part, depth=4)).encode()).hexdigest()[:8]}"


def _figures(part: Any, depth: int) -> Any:
    """What makes ``part`` what it is, in plain figures: texts of code, numbers, digests of tensors."""
    if part is None or isinstance(part, str | int | float | bytes):
        return part
    if isinstance(part, Tensor):
        flat: Tensor = part.detach().cpu().contiguous().flatten()
        return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()
    if depth == 0:
        return type(part).__qualname__
    if isinstance(part, Mapping):
        return [(str(key), _figures(value, depth - 1)) for key, value in part.items()]
    if isinstance(part, list | tuple):
        return [_figures(one, depth - 1) for one in part]
    if isinstance(part, partial):
        return _figures([part.func, part.args, part.keywords], depth)
    if inspect.ismethod(part):
        return _figures([part.__func__, part.__self__], depth)
    if inspect.isfunction(part):
        carried = [part.__defaults__, part.__kwdefaults__, inspect.getclosurevars(part).nonlocals]
        return [_text(part), *_told(part.__code__), _figures(carried, depth)]
    return [_text(part if inspect.isroutine(part) or isinstance(part, type) else type(part)), *_fields(part, depth)]


def _told(code: CodeType) -> list[Any]:
    """Names and constants of a function: two on one line have one text."""
    kinds = {CodeType: _told, frozenset: lambda items: sorted(map(str, items))}  # a set's order is another each time
    return [code.co_names, [kinds.get(type(const), str)(const) for const in code.co_consts]]


def _fields(part: Any, depth: int) -> list[Any]:
    return [] if isinstance(part, type) else [_figures(getattr(part, "__dict__", {}), depth - 1)]


def _text(part: Any) -> str:
    """The source of a function or a class; its name where there is none to read."""
    try:
        return inspect.getsource(part)
    except (OSError, TypeError):
        return reference(part)


def _places() -> tuple[tuple[str, int], ...]:
    """The folders of ``sys.path`` and when each last changed: what is installed meanwhile is seen."""
    folders = [path for path in sys.path if Path(path).is_dir()]
    return tuple((path, Path(path).stat().st_mtime_ns) for path in folders)


@lru_cache(maxsize=32)  # a policy asks anew at every run
def _installed(group: str, places: tuple[tuple[str, int], ...]) -> dict[str, Part]:
    """Entry points of ``group`` among the distributions in ``places``."""
    parts: dict[str, Part] = {}
    for entry in entry_points(group=group):
        version = "an unknown package" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
        known = parts.get(entry.name)
        rivals: tuple[str, ...] = ()
        if known is not None and known.reference != entry.value:
            rivals = (*(known.rivals or (known.version,)), version)
        parts[entry.name] = Part(name=entry.name, reference=entry.value, version=version, rivals=rivals)
    return parts


def _check_group(group: str) -> None:
    if group not in GROUPS:
        raise PluginError(f"no group {group!r}; groups are {', '.join(GROUPS)}")
