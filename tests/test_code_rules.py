"""Rules that the code keeps, one test a rule over all files: sizes, names, words, documentation, nothing unpickled."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sysconfig
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import click
import pytest

import dynext as dx
from dynext.cli import main

ROOT = Path(__file__).resolve().parents[1]
CODE = sorted((ROOT / "dynext").rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
RUNNER = ROOT / "dynext" / "io" / "run_onnx.py"
"""Copied into exported folders; it stands alone and is no part of the package's names."""

NAMESPACES = ("align", "data", "errors", "gates", "graph", "heads", "losses", "meta", "models", "policies", "prune")
NAMESPACES += ("testing", "train", "zeroshot")


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def test_there_is_something_to_look_at() -> None:
    assert len(CODE) >= 200
    assert len(RECIPES) >= 15
    assert len(TESTS) >= 80


def test_modules_say_what_they_are_and_are_called_so() -> None:
    silent = [path for path in CODE if path.stat().st_size and not ast.get_docstring(parsed(path))]
    assert not silent
    assert not [path for path in CODE if path.stem in ("utils", "util", "helpers", "misc", "common", "manager")]


def test_no_function_is_too_long_to_read() -> None:
    long = []
    for path in CODE:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno - (ast.get_docstring(node, clean=False) or "").count("\n")
                if lines > 60:
                    long.append(f"{where(path, node)} {node.name}: {lines} lines")
    assert not long


def public_classes() -> dict[str, list[str]]:
    found = defaultdict(list)
    for path in CODE:
        if path != RUNNER:
            for node in parsed(path).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found[node.name].append(where(path, node))
    return found


def test_no_two_public_classes_share_a_name() -> None:
    classes = public_classes()
    assert len(classes) >= 100
    assert not {name: places for name, places in classes.items() if len(places) > 1}


def test_no_module_is_shadowed_by_a_function_of_its_name() -> None:
    packages = [path.parent for path in CODE if path.name == "__init__.py"]
    assert len(packages) >= 15
    shadowed = []
    for package in packages:
        name = ".".join(package.relative_to(ROOT).parts)
        module = import_module(name)
        inside = [path.stem for path in package.iterdir() if path.is_dir() or path.suffix == ".py"]
        inside.remove("__init__")
        shadowed += [f"{name}.{one}" for one in inside if inspect.isroutine(getattr(module, one, None))]
    assert not shadowed


def test_a_loss_and_a_trainer_do_not_share_a_name() -> None:
    assert not set(dx.losses.__all__) & set(dx.train.__all__)


def test_found_is_no_name() -> None:
    named = []
    for path in CODE:
        for node in ast.walk(parsed(path)):
            name = getattr(node, "arg", None) or (node.id if isinstance(node, ast.Name) else None)
            if name == "found":
                named.append(where(path, node))
    assert not named


def test_the_face_is_small_and_its_names_are_documented() -> None:
    assert 30 <= len(dx.__all__) <= 45
    for space in (dx, *(getattr(dx, name) for name in NAMESPACES)):
        for name in exported(space):
            value = getattr(space, name)
            if inspect.isclass(value) or inspect.isroutine(value):
                text = inspect.getdoc(value) or ""
                assert len(text) > 15, f"{space.__name__}.{name} says nothing about itself"
                assert not text.startswith(f"{name}("), f"{space.__name__}.{name} has a generated docstring"


def exported(space: ModuleType) -> list[str]:
    """What a namespace offers: ``__all__``, or for plain modules what is defined in them."""
    names = getattr(space, "__all__", None)
    if names is None:
        own = [n for n, v in vars(space).items() if getattr(v, "__module__", None) == space.__name__]
        names = [n for n in own if not n.startswith("_")]
    assert len(set(names)) == len(names)
    return list(names)


def test_each_namespace_opens_with_its_table_of_contents() -> None:
    for name in (
        "align",
        "data",
        "gates",
        "heads",
        "losses",
        "meta",
        "models",
        "policies",
        "prune",
        "train",
        "zeroshot",
    ):
        space = getattr(dx, name)
        contents = inspect.getdoc(space) or ""
        assert "====" in contents, f"dx.{name} has no table"
        told = re.findall(r"`(?:\w+\.)*(\w+)`", re.sub(r"`\w+\.py`", "", contents))
        # a loss names the function that it belongs to, which may stand elsewhere
        known = (space, dx, *(getattr(dx, other) for other in NAMESPACES))
        missing = [one for one in told if not any(hasattr(place, one) for place in known)]
        assert not missing, f"dx.{name} tells of {missing}"


def test_public_names_are_used_by_somebody() -> None:
    """A name that no recipe, notebook, benchmark or page of the docs uses is not public."""
    pages = [*RECIPES, *(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "benchmarks").glob("*.py")]
    pages += [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in pages)
    names = [("dx", name) for name in exported(dx)]
    for space in set(NAMESPACES) - {"errors", "testing"}:
        names += [(space, name) for name in exported(getattr(dx, space))]
    assert len(names) >= 100
    assert not sorted(f"{space}.{name}" for space, name in names if not re.search(rf"\b{space}\.{name}\b", text))


OLD_WORDS = re.compile(
    r"\b(eats?|artefacts?|leash|lessons?|painter|pupils?|one look|looks)\b|\brows?\b|\blook=",
    re.IGNORECASE,
)
"""Words of version 0.1 that a newcomer stumbled over. *Row* belongs to tables, *sample* to everything else."""


def messages(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """Every text that is raised."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            for part in ast.walk(node.exc):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield node, part.value


def test_errors_and_help_use_the_fields_own_words() -> None:
    said = [(where(path, node), text) for path in CODE for node, text in messages(path)]
    assert len(said) >= 500
    for name, command in main.commands.items():
        said += [(name, text) for text in helps(command)]
    assert not [(place, text) for place, text in said if OLD_WORDS.search(text)]


def helps(command: click.Command) -> Iterator[str]:
    yield command.help or ""
    yield command.short_help or ""
    for option in command.params:
        if isinstance(option, click.Option):
            yield f"{' '.join(option.opts)} {option.help}"
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            yield from helps(inner)


def test_arrows_point_down() -> None:
    pytest.importorskip("importlinter", reason="import-linter comes with the dev extra")
    linter = Path(sysconfig.get_path("scripts")) / "lint-imports"
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert re.search(r"[1-9]\d* kept, 0 broken", done.stdout)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def has(call: ast.Call, keyword: str, value: object) -> bool:
    return any(k.arg == keyword and isinstance(k.value, ast.Constant) and k.value.value is value for k in call.keywords)


UNSAFE = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "pickle.dump", "pickle.dumps", "torch.jit.load", "eval", "exec",
}  # fmt: skip


def test_nothing_is_unpickled_or_evaluated() -> None:
    unsafe = []
    for path in [*CODE, *RECIPES]:
        for name, call in calls(parsed(path)):
            loads = name == "torch.load" and not has(call, "weights_only", True)
            if name in UNSAFE or loads or has(call, "allow_pickle", True) or has(call, "weights_only", False):
                unsafe.append(f"{where(path, call)} {name}")
    assert not unsafe


def test_only_one_module_touches_the_global_seed() -> None:
    seeds = ("torch.manual_seed", "np.random.seed", "random.seed")
    touching = {path.name for path in [*CODE, *RECIPES] for name, _ in calls(parsed(path)) if name in seeds}
    assert touching == {"seeding.py"}


def checks(function: ast.AST) -> bool:
    return any(
        isinstance(node, ast.Assert)
        or (isinstance(node, ast.Call) and re.search(r"raises|warns|assert_|check_", ast.unparse(node.func)))
        for node in ast.walk(function)
    )


def test_every_test_checks_something() -> None:
    functions = [
        (path, node)
        for path in TESTS
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test")
    ]
    assert len(functions) >= 100
    assert not [f"{where(path, node)} {node.name}" for path, node in functions if not checks(node)]
