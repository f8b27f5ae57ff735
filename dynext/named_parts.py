"""Parts that a user names: by a name of ours, a registered one (`dynext.plugins`), or by where they are defined.

A name never makes a saved folder run code: `load` asks for a part again unless an installed package registers it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from dynext.errors import PluginError, line
from dynext.plugins import registered

USER_FILE = "dynext_user_"
"""Begins the module name of a file that was named by its path: no other process knows it."""


class PartReference(NamedTuple):
    """Where a part can be had again, as JSON: a registered name or ``package.module:name``, and keyword arguments."""

    name: str | None
    options: dict[str, Any]


def named(text: str, group: str, ours: Mapping[str, Any]) -> Any:
    """The part that ``text`` names: one of ours, a registered one, ``package.module:name``, ``path/to/file.py:name``.

    Raises:
        PluginError: there is no such name, or what it names cannot be imported.
    """
    if ":" in text:
        return _imported(text)
    if text in ours:
        return ours[text]
    parts = registered(group)
    if text in parts:
        return parts[text].load()
    names = [*ours, *parts]
    near = get_close_matches(text, names, 1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    raise PluginError(
        f"nothing of {group} is called {text!r}; {meant}known are {', '.join(names) or 'none'}; a part of your own is "
        f"named by package.module:name or path/to/file.py:name"
    )


def reference_to(part: Any) -> PartReference:
    """Where ``part``, a function or a class, can be imported from, if it can; arguments of a `functools.partial` are
    kept where they are JSON.
    """
    if isinstance(part, functools.partial):
        name, options = reference_to(part.func).name, dict(part.keywords)
        return PartReference(name, options) if name and not part.args and _is_json(options) else PartReference(None, {})
    module, qualified = getattr(part, "__module__", None), getattr(part, "__qualname__", "<none>")
    if module in (None, "__main__") or module not in sys.modules or "<" in qualified:
        return PartReference(None, {})
    there: Any = sys.modules[module]
    for step in qualified.split("."):
        there = getattr(there, step, None)
    importable = there is part and not module.startswith(USER_FILE)
    return PartReference(f"{module}:{qualified}" if importable else None, {})


def called(part: Any) -> str:
    """What a user calls ``part``, for messages."""
    if isinstance(part, functools.partial):
        return called(part.func)
    name = getattr(part, "__qualname__", None) or type(part).__name__
    return str(name).rpartition("<locals>.")[2].replace("<lambda>", "the lambda")


def _is_json(options: Mapping[str, Any]) -> bool:
    try:
        return bool(json.loads(json.dumps(options, allow_nan=False)) == options)
    except (TypeError, ValueError):
        return False


def _imported(text: str) -> Any:
    """What a user names himself may be run: he asks for it."""
    place, _, name = text.rpartition(":")
    try:
        module = _file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # the user's own code may raise anything
        advice = "give package.module:name or path/to/file.py:name"
        raise PluginError(f"{text!r} cannot be imported: {line(error)}; {advice}") from error
    there: Any = module
    for step in name.split("."):
        there = getattr(there, step, None)
    if there is None:
        public = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        near = get_close_matches(name, public, 1) or public[:3]
        raise PluginError(f"{place} has no {name!r}; did you mean {' or '.join(map(repr, near)) or 'another file'}?")
    return there


def _file(path: Path) -> Any:
    """A file is run once, its folder importable while it runs."""
    path = path.resolve()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path.name}")
    name = f"{USER_FILE}{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path.name} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses in the file look themselves up there
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module
