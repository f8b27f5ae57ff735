"""Nets out of files of one's own: found again once the file is trusted, and never run otherwise."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shell import done, refused, run

from dynext.cli.shared import trust

CODE = """
from pathlib import Path

from torch import nn

from parts import block

ran = Path(__file__).with_name("ran")
ran.write_text(str(int(ran.read_text()) + 1) if ran.exists() else "1")


def net(width: int = 4, classes: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Sequential(block(1, width), nn.MaxPool2d(2)), nn.Sequential(block(width, width)), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(width, classes),
    )


def other(width: int = 4) -> nn.Module:
    return net(width)
"""
PARTS = """
from torch import nn


def block(given: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(given, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())
"""
SMALL = ("--shape", "1x8x8", "--after", "0", "--method", "leaves", "--samples", "64", "--steps", "2")


@pytest.fixture(autouse=True)
def _config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "parts.py").write_text(PARTS)
    (folder / "nets.py").write_text(CODE)
    return folder / "nets.py"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    path = tmp_path / "x.npz"
    np.savez(path, x=draw.integers(0, 256, (40, 8, 8), dtype=np.uint8), y=draw.integers(0, 3, 40))
    return path


def converted(own: Path, folder: Path, images: Path, *more: Any) -> Path:
    done("convert", f"{own}:net", *SMALL, "-o", folder, "--calibrate", images, *more)
    return folder


def runs(own: Path) -> int:
    return int((own.parent / "ran").read_text())


def test_a_file_is_trusted_once_and_found_from_anywhere(
    own: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own.parent)
    net = converted(Path("nets.py"), tmp_path / "net", images)
    before = {path: path.read_bytes() for path in net.iterdir()}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    seen = runs(own)
    told = refused("evaluate", net, "--data", images)
    assert f"comes from {own}:net, a file whose code would be run" in told
    assert "add --trust" in told
    assert runs(own) == seen, "nothing is run before it is trusted"
    assert "accuracy" in done("evaluate", net, "--data", images, "--trust")
    picture = tmp_path / "0.png"
    Image.new("L", (8, 8), 9).save(picture)
    for command in (
        ("evaluate", net, "--data", images), ("predict", net, picture), ("bench", net, "--batch", "1"),
        ("report", net), ("evaluate", net, "--unlabelled", images, "--choose", "--max-drop", "1"),
        ("adapt", net, "--support", tmp_path / "few", "--method", "prototypes", "-o", tmp_path / "adapted"),
        ("evaluate", tmp_path / "adapted", "--data", tmp_path / "few"),
    ):  # fmt: skip
        for name in ("a", "b"):
            (tmp_path / "few" / name).mkdir(parents=True, exist_ok=True)
            for i in range(3):
                Image.effect_noise((8, 8), 50 + 50 * i).save(tmp_path / "few" / name / f"{i}.png")
        done(*command)
    held = trust.trust_file()
    assert held == tmp_path / "config" / "dynext" / "trusted_files.json"
    assert list(json.loads(held.read_text())["files"]) == [str(own)]
    assert {path.name for path in net.iterdir()} == {path.name for path in before}, "nothing of it lies in the folder"
    assert [path.name for path in held.parent.iterdir()] == [held.name], "no half-written file stays"


def test_convert_can_be_told_at_once(own: Path, images: Path, tmp_path: Path) -> None:
    net = converted(own, tmp_path / "net", images, "--trust")
    assert "accuracy" in done("evaluate", net, "--data", images)
    wide = converted(own, tmp_path / "wide", images, "--argument", "width=6")
    assert "accuracy" in done("evaluate", wide, "--data", images), "the file is trusted, and the user called it so"
    assert "--trust is about files of your own" in refused("inspect", "cifar:resnet8", "--trust")


@pytest.mark.parametrize("changed", ["nets.py", "parts.py"])
def test_a_changed_file_is_refused_again(own: Path, images: Path, tmp_path: Path, changed: str) -> None:
    net = converted(own, tmp_path / "net", images, "--trust")
    seen = runs(own)
    with (own.parent / changed).open("a") as file:
        file.write("\n# a line more\n")
    told = refused("evaluate", net, "--data", images)
    assert "was changed since you trusted it; read it, then add --trust" in told
    assert runs(own) == seen
    done("evaluate", net, "--data", images, "--trust")
    assert "accuracy" in done("evaluate", net, "--data", images)


@pytest.mark.parametrize(
    "edit", [{"name": "other"}, {"name": "Path"}, {"arguments": {"width": 4}}, {"arguments": {"classes": 3}}]
)
def test_a_folder_cannot_call_a_trusted_file_as_it_likes(
    own: Path, images: Path, tmp_path: Path, edit: dict[str, Any]
) -> None:
    net = converted(own, tmp_path / "net", images, "--trust")
    seen = runs(own)
    card = json.loads((net / "net.json").read_text())
    card["model"] |= {**edit, **({"name": f"{own}:{edit['name']}"} if "name" in edit else {})}
    (net / "net.json").write_text(json.dumps(card))
    assert "which you trust, in a way that you have not" in refused("evaluate", net, "--data", images)
    assert runs(own) == seen


def test_a_file_that_moved_is_named_once(own: Path, images: Path, tmp_path: Path) -> None:
    net = converted(own, tmp_path / "net", images, "--trust")
    moved = tmp_path / "moved"
    own.parent.rename(moved)
    told = refused("evaluate", net, "--data", images)
    assert "there is no such file here; say where it is with --model path/to/file.py:net" in told
    given = ("evaluate", net, "--data", images, "--model", f"{moved / 'nets.py'}:net")
    done(*given)
    assert "there is no such file" in refused("evaluate", net, "--data", images), "naming it once is not trusting it"
    done(*given, "--trust")
    assert "accuracy" in done("evaluate", net, "--data", images)


def test_a_net_without_a_recipe(own: Path, images: Path, tmp_path: Path) -> None:
    net = converted(own, tmp_path / "net", images)
    card = json.loads((net / "net.json").read_text())
    (net / "net.json").write_text(json.dumps({**card, "model": None}))
    assert "a module of your own; give a file that builds it" in refused("evaluate", net, "--data", images)
    done("evaluate", net, "--data", images, "--model", f"{own}:net", "--trust")
    assert "accuracy" in done("evaluate", net, "--data", images)


def test_the_list_of_trusted_files(own: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = converted(own, tmp_path / "net", images, "--trust")
    held = trust.trust_file()
    held.write_text("{")
    assert "trusted_files.json, which lists the files you trust, is damaged; delete it" in refused("predict", net, own)
    held.unlink()
    monkeypatch.chdir(tmp_path / "config")
    for place in ("", "dynext", "."):  # the current folder may be anybody's
        monkeypatch.setenv("XDG_CONFIG_HOME", place)
        assert trust.trust_file() == Path.home() / ".config" / "dynext" / "trusted_files.json"
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(blocked))
    result = run("evaluate", net, "--data", images, "--trust")
    assert result.exit_code == 0
    assert "Note: that" in result.stderr
    assert "cannot be kept" in result.stderr


def test_the_digest_is_of_all_that_a_file_imports_from_its_folder(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "inner").mkdir(parents=True)
    files = {
        "main.py": "import os, alone\nfrom package import first\nfrom package.inner import deep as d\n",
        "alone.py": "", "package/__init__.py": "",
        "package/first.py": "from . import second\nfrom .inner.deep import x\n",
        "package/second.py": "import main\n", "package/inner/__init__.py": "", "package/inner/deep.py": "x = 1\n",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "unrelated.py").write_text("")
    before = trust.digest_of(tmp_path / "main.py")
    (tmp_path / "unrelated.py").write_text("changed = True")
    assert trust.digest_of(tmp_path / "main.py") == before
    for name, text in files.items():
        (tmp_path / name).write_text(text + "# more\n")
        assert trust.digest_of(tmp_path / "main.py") != before, name
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name)
    assert trust.digest_of(tmp_path / "main.py") == before
