"""Parts that other packages bring, by name: entry points of installed distributions, or parts registered here and now.

A package declares them in its ``pyproject.toml``; wherever it is installed, they are there, on the command line too::

    [project.entry-points."dynext.confidences"]
    gap = "my_package.measures:gap"

Nothing is imported before a part is asked for by name. A package that is broken is named when one of its parts is
asked for, and keeps nobody from the others. A name of dynext's own is never given away.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

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
        rivals = ()
        if known is not None and known.reference != entry.value:
            rivals = (*(known.rivals or (known.version,)), version)
        parts[entry.name] = Part(name=entry.name, reference=entry.value, version=version, rivals=rivals)
    return parts


def _check_group(group: str) -> None:
    if group not in GROUPS:
        raise PluginError(f"no group {group!r}; groups are {', '.join(GROUPS)}")
