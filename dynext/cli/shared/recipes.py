"""Recipes by name: those of this version, and those of installed packages (entry points ``dynext.recipes``)."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from dynext.data.bundled import recipe_folder
from dynext.errors import DynextError, PluginError
from dynext.plugins import Part, registered

GROUP = "dynext.recipes"
HOLDS = ("PAPER", "SMOKE", "main")
"""What a recipe's module has."""


def recipes() -> Mapping[str, Path | Part]:
    """Every recipe by its name: a file of ours, or a module of another package, not yet imported."""
    ours = {path.stem: path for path in sorted(recipe_folder().glob("*.py"))}
    return {**ours, **{name: part for name, part in registered(GROUP).items() if name not in ours}}


def about(one: Path | Part) -> str:
    """The first sentence of the file's docstring; of another package's, which is not imported for that, its place."""
    if isinstance(one, Part):
        return f"of {one.version} ({one.reference})"
    text = ast.get_docstring(ast.parse(one.read_text(encoding="utf-8"))) or ""
    return text.partition("\n\n")[0].replace("\n", " ")


def recipe_file(name: str) -> Path:
    """The recipe's file.

    Raises:
        DynextError: no such recipe, or one whose package cannot be imported or holds no file.
    """
    one = _find(name)
    if isinstance(one, Path):
        return one
    file = inspect.getsourcefile(_module_of(one))
    if file is None:
        raise PluginError(f"{one.name!r} of {one.version} ({one.reference}) has no file to show; run it instead")
    return Path(file)


def recipe_module(name: str) -> Any:
    """The recipe, imported: what has ``PAPER``, ``SMOKE`` and ``main``.

    Raises:
        DynextError: no such recipe, or one whose package cannot be imported.
    """
    one = _find(name)
    if isinstance(one, Part):
        return _module_of(one)
    spec = importlib.util.spec_from_file_location(f"dynext_recipe_{one.stem}", one)
    if spec is None or spec.loader is None:
        raise DynextError(f"{one} is no Python file; install dynext again")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses in the file look themselves up there
    spec.loader.exec_module(module)
    return module


def _find(name: str) -> Path | Part:
    known = recipes()
    one = known.get(name.removesuffix(".py"))
    if one is None:
        near = difflib.get_close_matches(name, known, 1)
        raise DynextError(
            f"no recipe {name!r}; {f'did you mean {near[0]}?' if near else 'dynext recipe ls lists them'}"
        )
    return one


def _module_of(part: Part) -> ModuleType:
    module = part.load()
    missing = [name for name in HOLDS if not hasattr(module, name)]
    if missing or not isinstance(module, ModuleType):
        raise PluginError(
            f"{part.name!r} of {part.version} ({part.reference}) is no recipe ({', '.join(missing) or 'no module'}); "
            f"let its entry point name a module with PAPER, SMOKE and main, without a colon"
        )
    return module
