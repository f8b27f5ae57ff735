"""Recipes from a shell: typed fields, near misses, JSON out."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from dynext.errors import DynextError
from dynext.recipe import overridden, parsed, recipe_cli


@dataclass(frozen=True, kw_only=True)
class Config:
    """Something small."""

    steps: int = 100
    lr: float = 0.1
    samples: int | None = None
    out: Path = Path("here")
    kind: Literal["adam", "sgd"] = "adam"
    shares: tuple[float, ...] = (0.5,)
    shape: tuple[int, int] = (1, 2)
    flip: bool = True
    note: str | None = None


PAPER = Config()
SMOKE = replace(PAPER, steps=2)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("steps=7", "steps", 7),
        ("--lr=1e-3", "lr", 1e-3),
        ("samples=none", "samples", None),
        ("samples=12", "samples", 12),
        ("out=a/b", "out", Path("a/b")),
        ("kind=sgd", "kind", "sgd"),
        ("shares=.1,.2", "shares", (0.1, 0.2)),
        ("shape=(3, 4)", "shape", (3, 4)),
        ("flip=no", "flip", False),
        ("flip=true", "flip", True),
        ("note=a=b", "note", "a=b"),
    ],
)
def test_fields_are_read_by_their_type(text: str, name: str, value: Any) -> None:
    changed = overridden(PAPER, [text])
    assert getattr(overridden(replace(PAPER, flip=False), [text]), name) == value
    assert getattr(changed, name) == value
    assert type(getattr(changed, name)) is type(value)
    assert replace(changed, **{name: getattr(PAPER, name)}) == PAPER


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("step=7", r"'step=7' sets no field; did you mean steps=...\?"),
        ("steps", "'steps' sets no field"),
        ("zzz=1", "fields are steps, lr"),
        ("steps=many", "steps=many is no int"),
        ("kind=rmsprop", r"kind=rmsprop is no Literal\['adam', 'sgd'\] \(give one of adam, sgd\)"),
        ("shape=1", "give 2 values"),
        ("flip=maybe", "give true or false"),
    ],
)
def test_misfits_are_told(text: str, told: str) -> None:
    with pytest.raises(DynextError, match=told):
        overridden(PAPER, [text])


def test_unions_take_the_first_that_fits() -> None:
    assert parsed("3", int | float) == 3
    assert parsed("3.5", int | float) == 3.5


def test_results_are_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    recipe_cli(PAPER, SMOKE, lambda config: {"steps": config.steps, "out": config.out}, ["--smoke", "out=there"])
    assert json.loads(capsys.readouterr().out) == {"steps": 2, "out": "there"}
    recipe_cli(PAPER, SMOKE, lambda config: config.steps, [])
    assert json.loads(capsys.readouterr().out) == 100


def test_users_errors_are_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        recipe_cli(PAPER, SMOKE, lambda config: config.steps, ["stepps=1"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: 'stepps=1' sets no field; did you mean steps=...?\n"


def test_help_lists_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    recipe_cli(PAPER, SMOKE, overridden, ["--help"])
    out = capsys.readouterr().out
    assert "samples=None  (int | None)" in out
    assert "lr=0.1  (float)" in out
