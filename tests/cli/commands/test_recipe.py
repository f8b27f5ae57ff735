"""Recipes from the shell: listed, shown, copied and run as they belong to this version."""

import json
import re
import sys
from pathlib import Path

import pytest
from shell import done, refused

from dynext.data import bundled

SMALL = '''"""One line. And more.

Further."""
from dataclasses import dataclass, replace

import dynext as dx


@dataclass(frozen=True)
class Config:
    steps: int = 10


PAPER = Config()
SMOKE = replace(PAPER, steps=1)


def main(config):
    return {"steps": config.steps}
'''


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "small.py").write_text(SMALL)
    monkeypatch.setattr(bundled, "RECIPES", (folder,))
    return folder


def test_the_checkouts_recipes_are_listed_shown_and_copied(tmp_path: Path) -> None:
    own = bundled.recipe_folder()
    listed = done("recipe", "ls")
    names = [path.stem for path in own.glob("*.py")]
    assert len(names) >= 5
    assert all(name in listed for name in names)
    assert done("recipe", "show", "exits_joint") == (own / "exits_joint.py").read_text(encoding="utf-8")
    assert "python" in done("recipe", "cp", "msdnet", tmp_path / "mine.py")
    assert (tmp_path / "mine.py").read_bytes() == (own / "msdnet.py").read_bytes()


def test_examples_name_recipes_that_are_there() -> None:
    names = {path.stem for path in bundled.recipe_folder().glob("*.py")}
    told = [done("recipe", *words, "--help") for words in ((), ("show",), ("cp",), ("run",))]
    named = [name for text in told for name in re.findall(r"dynext recipe (?:show|cp|run) (\w+)", text)]
    assert len(named) >= 5
    assert set(named) <= names
    assert done("recipe") == done("recipe", "--help")  # and no error of many lines in one


def test_a_recipe_runs_with_its_settings(small: Path) -> None:
    assert json.loads(done("recipe", "run", "small", "steps=3")) == {"steps": 3}
    assert json.loads(done("recipe", "run", "small", "--smoke")) == {"steps": 1}
    assert "steps=10  (int)" in done("recipe", "run", "small", "--help")
    assert "Run the recipe NAME" in done("recipe", "run", "--help")
    assert "One line. And more." in done("recipe", "ls")


def test_mistakes(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no recipe 'smal'; did you mean small?" in refused("recipe", "show", "smal")
    assert "did you mean steps=...?" in refused("recipe", "run", "small", "step=3")
    (tmp_path / "there.py").write_text("kept")
    assert "is there already" in refused("recipe", "cp", "small", tmp_path / "there.py")
    assert (tmp_path / "there.py").read_text() == "kept"
    assert "there is no folder" in refused("recipe", "cp", "small", tmp_path / "no" / "mine.py")
    monkeypatch.setattr(bundled, "RECIPES", (tmp_path / "gone",))
    assert "install dynext again" in refused("recipe", "ls")


def test_the_wheel_carries_them() -> None:
    project = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"recipes" = "dynext/{bundled.RECIPES[0].name}"' in project
    assert f'"data" = "dynext/{bundled.FOLDERS[0].name}"' in project


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that brings recipes: one that works, one of a name of ours, one that is none, one that is broken."""
    site = tmp_path / "site"
    info = site / "theirs-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[dynext.recipes]\nwarm = theirs_warm\nmsdnet = theirs_warm\nnone = theirs_warm:Config\nbroken = theirs_no\n"
    )
    (site / "theirs_warm.py").write_text(SMALL)
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "theirs_warm", raising=False)
    return site


def test_recipes_of_installed_packages_are_listed_shown_copied_and_run(foreign: Path, tmp_path: Path) -> None:
    assert re.search(r"warm +of theirs 1.0 \(theirs_warm\)", done("recipe", "ls"))
    assert done("recipe", "show", "warm") == SMALL
    done("recipe", "cp", "warm", tmp_path / "mine.py")
    assert (tmp_path / "mine.py").read_text() == SMALL
    assert json.loads(done("recipe", "run", "warm", "steps=7")) == {"steps": 7}
    assert done("recipe", "show", "msdnet") == (bundled.recipe_folder() / "msdnet.py").read_text(encoding="utf-8")


def test_what_a_package_calls_a_recipe_and_is_none_is_refused(foreign: Path) -> None:
    assert "is no recipe (PAPER, SMOKE, main)" in refused("recipe", "run", "none")
    assert "'broken' of theirs 1.0 (theirs_no) cannot be imported" in refused("recipe", "run", "broken")
    assert "did you mean warm?" in refused("recipe", "show", "warmm")
