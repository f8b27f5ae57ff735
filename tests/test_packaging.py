"""The project as a whole: the README's examples run, recipes run, and there is one version.

Subjects are discovered, then counted, so that an empty glob cannot pass. In README.md every ``python`` block is run,
in order, in one namespace; a ``bash`` block is run when the line before it is a comment that begins with
``<!-- test``. Such a comment can make an example small: ``<!-- test: 4096 -> 64; steps=2000 -> steps=3 -->``.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import math
import os
import re
import runpy
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

import dynext as dx

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
SCRIPTS = Path(sysconfig.get_path("scripts"))


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
    (tmp_path / "my_photos").mkdir()
    pixels = np.random.default_rng(0)
    for name in range(40):
        Image.fromarray(pixels.integers(0, 256, (36, 40), np.uint8)).save(tmp_path / "my_photos" / f"{name}.png")
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block.code, "README.md", "exec"), namespace)


def test_the_page_of_methods_is_what_docstrings_say() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "methods.py"))["page"]()
    assert (ROOT / "docs" / "methods.md").read_text(encoding="utf-8") == page, "run python docs/methods.py"


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
    figures = list(leaves(result))
    assert figures
    for name, figure in figures:
        assert math.isfinite(figure), f"{name} is {figure}"
        if re.search(r"accuracy|agree|right|ece|share|exits", name):
            assert 0 <= figure <= 1 or figure == round(figure), f"{name} is {figure}"  # a share, or a count
        if "saved" in name:
            assert figure <= 1, f"{name} is {figure}"


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a recipe's result, each with the keys that lead to it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from leaves(inner, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


def test_recipes_are_short_and_use_public_names_only() -> None:
    assert len(RECIPES) >= 15
    for path in RECIPES:
        source = path.read_text(encoding="utf-8")
        assert len(source.splitlines()) <= 150, path
        modules = [node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
        ours = {module for module in modules if module and module.startswith("dynext")}
        assert "dynext.recipe" in ours <= {"dynext.recipe", "dynext.atomic"}, path
        used = re.findall(r"\bdx\.(\w+)(?:\.(\w+))?", source)
        assert used, path
        for name, inner in used:
            space = getattr(dx, name)
            assert name in dx.__all__ or (inspect.ismodule(space) and hasattr(space, inner)), f"{path}: dx.{name}"


def test_recipes_explain_themselves(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for path in RECIPES:
        monkeypatch.setattr(sys, "argv", [str(path), "--help"])
        runpy.run_path(str(path), run_name="__main__")
        assert "usage: [--smoke] [field=value ...]" in capsys.readouterr().out, path


def test_the_version_is_one() -> None:
    assert metadata.version("dynext") == dx.__version__
