"""A recipe from a shell: ``python recipes/NAME.py [--smoke] [field=value ...]``.

A recipe is a Python file with a frozen ``Config``, the settings ``PAPER`` and ``SMOKE``, and ``main(config)``.
"""

from __future__ import annotations

import ast
import difflib
import json
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dynext.errors import DynextError

C = TypeVar("C")
"""A recipe's Config: a frozen dataclass."""


def recipe_cli(paper: C, smoke: C, main: Callable[[C], Any], arguments: Sequence[str] | None = None) -> None:
    """Run a recipe's ``main`` on ``paper``, or on ``smoke`` with ``--smoke``, and print its result as JSON.

    ``field=value`` replaces a field of the config, read by the field's type: ``steps=500``, ``samples=none``,
    ``lrs=0.1,0.01``. ``--help`` prints the fields. A user's error is one line and exit code 2.
    """
    try:
        run_recipe(paper, smoke, main, sys.argv[1:] if arguments is None else arguments)
    except DynextError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def run_recipe(paper: C, smoke: C, main: Callable[[C], Any], given: Sequence[str]) -> None:
    """As `recipe_cli`, but a user's error is raised instead of printed."""
    if {"-h", "--help"} & set(given):
        print(_help(paper, main))
        return
    config = overridden(smoke if "--smoke" in given else paper, [g for g in given if g != "--smoke"])
    print(json.dumps(main(config), indent=2, default=str))


def overridden(config: C, given: Sequence[str]) -> C:
    """``config`` with fields replaced by ``field=value`` texts.

    Raises:
        DynextError: a field that does not exist (the nearest is suggested), or a value that is not of its type.
    """
    hints = get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not equals or name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            hint = f"did you mean {near[0]}=...?" if near else f"fields are {', '.join(hints)}"
            raise DynextError(f"{text!r} sets no field; {hint}")
        try:
            changes[name] = parsed(value, hints[name])
        except (ValueError, SyntaxError) as error:
            raise DynextError(f"{name}={value} is no {_named(hints[name])} ({error})") from error
    return replace(config, **changes)  # type: ignore[type-var]


def parsed(text: str, kind: Any) -> Any:
    """``text`` as a value of ``kind``: bool, int, float, str, Path, Literal, tuples of these, or one of them or None.

    >>> parsed("1_000", int), parsed("none", int | None), parsed("1,2", tuple[int, ...]), parsed("no", bool)
    (1000, None, (1, 2), False)
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if text.lower() == "none" and type(None) in inner:
            return None
        return _first(text, [k for k in inner if k is not type(None)])
    if origin is Literal:
        if text not in map(str, inner):
            raise ValueError(f"give one of {', '.join(map(str, inner))}")
        return next(value for value in inner if str(value) == text)
    if origin is tuple:
        parts = [part.strip() for part in text.strip("()").split(",") if part.strip()]
        kinds = inner[:1] * len(parts) if inner[1:] == (...,) else inner
        if len(kinds) != len(parts):
            raise ValueError(f"give {len(kinds)} values with commas between")
        return tuple(parsed(part, k) for part, k in zip(parts, kinds, strict=True))
    if kind is bool:
        if text.lower() not in _BOOLS:
            raise ValueError("give true or false")
        return _BOOLS[text.lower()]
    return kind(text) if kind in (int, float, str, Path) else ast.literal_eval(text)


_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _first(text: str, kinds: Sequence[Any]) -> Any:
    for kind in kinds[:-1]:
        try:
            return parsed(text, kind)
        except ValueError:
            continue
    return parsed(text, kinds[-1])


def _named(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")


def _help(paper: Any, main: Callable[..., Any]) -> str:
    hints = get_type_hints(type(paper))
    module = sys.modules.get(main.__module__)
    about = ((module.__doc__ if module else None) or type(paper).__doc__ or "").strip()
    lines = [f"  {f.name}={getattr(paper, f.name)}  ({_named(hints[f.name])})" for f in fields(paper)]
    return "\n".join([about, "", "usage: [--smoke] [field=value ...]; fields and what they are:", *lines])
