"""The project as a whole: examples run, recipes run, names are documented, arrows point down, nothing is unpickled.

Subjects are discovered, then counted, so that an empty glob cannot pass. In README.md every ``python`` block is run,
in order, in one namespace; a ``bash`` block is run when the line before it is a comment that begins with
``<!-- test``. Such a comment can make an example small: ``<!-- test: 4096 -> 64; steps=2000 -> steps=3 -->``.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import runpy
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

import dynext as dx

ROOT = Path(__file__).resolve().parents[1]
CODE = sorted((ROOT / "dynext").rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
PYTHON = [*CODE, *RECIPES, *TESTS, *sorted((ROOT / "benchmarks").glob("*.py"))]
SCRIPTS = Path(sysconfig.get_path("scripts"))


def test_there_is_something_to_look_at() -> None:
    assert len(CODE) >= 40
    assert len(RECIPES) >= 3
    assert len(TESTS) >= 20


class Block(NamedTuple):
    """A fenced block of README.md and the substitutions that make it small."""

    language: str
    code: str
    marked: bool


def readme_blocks() -> list[Block]:
    pattern = re.compile(r"(?:<!-- test(?P<small>.*?)-->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL)
    blocks = []
    for found in pattern.finditer((ROOT / "README.md").read_text(encoding="utf-8")):
        code, small = found["code"], found["small"]
        for change in (small or "").strip(" :\n").split(";"):
            if change.strip():
                old, new = (part.strip() for part in change.split("->"))
                assert old in code, f"{old!r} of a README comment is not in its block"
                code = code.replace(old, new)
        blocks.append(Block(language=found["language"], code=code, marked=small is not None))
    return blocks


def test_python_blocks_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [block for block in readme_blocks() if block.language == "python"]
    assert len(blocks) >= 1
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block.code, "README.md", "exec"), namespace)


def test_marked_shell_blocks_of_the_readme_run(tmp_path: Path) -> None:
    blocks = [block for block in readme_blocks() if block.language == "bash" and block.marked]
    assert len(blocks) >= 1
    environment = {**os.environ, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"}
    for block in blocks:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.code],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{block.code}\n{done.stdout}\n{done.stderr}"


def opened(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_run_small(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = opened(path)
    assert type(recipe.PAPER) is type(recipe.SMOKE) is recipe.Config
    config = recipe.SMOKE
    if hasattr(config, "out"):
        config = replace(config, out=tmp_path / "out" / config.out.name)
    monkeypatch.chdir(tmp_path)
    try:
        result = recipe.main(config)
    except dx.errors.SourceError as error:
        if "is in none of" not in str(error):
            raise
        pytest.skip(f"the recipe's data set is not installed: {error}")
    assert result is not None


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_short_and_use_public_names_only(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 150
    tree = ast.parse(source)
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and "dynext" in (node.module or "")]
    assert not imported, "recipes say `import dynext as dx`"
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "dx"
    }
    assert used
    assert used <= set(dx.__all__)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_explain_themselves(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    runpy.run_path(str(path), run_name="__main__")
    assert "usage: [--smoke] [field=value ...]" in capsys.readouterr().out


def test_public_names_exist_and_are_documented() -> None:
    assert len(dx.__all__) >= 40
    assert len(set(dx.__all__)) == len(dx.__all__)
    for name in dx.__all__:
        value = getattr(dx, name)
        if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
            text = inspect.getdoc(value) or ""
            assert len(text) > 15, f"dx.{name} says nothing about itself"
            assert not text.startswith(f"{name}("), f"dx.{name} has a generated docstring"


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_documented_and_of_a_readable_size(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 300
    assert not source.strip() or ast.get_docstring(ast.parse(source))
    assert path.stem not in ("utils", "helpers", "misc", "common")


def test_the_version_is_one() -> None:
    assert metadata.version("dynext") == dx.__version__


def test_arrows_point_down() -> None:
    pytest.importorskip("importlinter", reason="import-linter comes with the dev extra")
    done = subprocess.run(
        [SCRIPTS / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"[1-9]\d* kept, 0 broken", done.stdout)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def has(call: ast.Call, keyword: str, value: object) -> bool:
    return any(k.arg == keyword and isinstance(k.value, ast.Constant) and k.value.value is value for k in call.keywords)


UNSAFE = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "pickle.dump",
    "pickle.dumps",
    "torch.jit.load",
    "eval",
    "exec",
}


@pytest.mark.parametrize("path", [*CODE, *RECIPES], ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_or_evaluated(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name, call in calls(tree):
        assert name not in UNSAFE, f"{path.name}:{call.lineno} calls {name}"
        assert name != "torch.load" or has(call, "weights_only", True), f"{path.name}:{call.lineno}: weights_only=True"
        assert not has(call, "allow_pickle", True), f"{path.name}:{call.lineno}: allow_pickle"
        assert not has(call, "weights_only", False), f"{path.name}:{call.lineno}: weights_only=False"


def test_only_one_module_touches_the_global_seed() -> None:
    touching = {
        path.name
        for path in [*CODE, *RECIPES]
        for name, _ in calls(ast.parse(path.read_text(encoding="utf-8")))
        if name in ("torch.manual_seed", "np.random.seed", "random.seed")
    }
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
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test")
    ]
    assert len(functions) >= 100
    assert not [f"{path.name}:{node.lineno} {node.name}" for path, node in functions if not checks(node)]
