"""Synthesize from the shell: a bank that opens, a picture, a quality report; it goes on after a kill."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shell import done, refused, run

import dynext as dx
from dynext.cli.commands.synthesize import COLUMNS, SHOWN, method_options, write_sheet
from dynext.errors import SourceError
from dynext.zeroshot.synth.inversion import Inversion
from dynext.zeroshot.synth.registry import METHODS

NET = ("synthesize", "cifar:resnet8", "--argument", "width=2")


def everything(folder: Path) -> torch.Tensor:
    return torch.cat([batch.x for batch in dx.Bank.open(folder)])


def test_it_makes_a_bank_and_tells_its_quality(tmp_path: Path) -> None:
    result = run(*NET, "--method", "leaves", "-n", 40, "--out", tmp_path / "bank", "--sheet", tmp_path / "sheet.png")
    assert "has random weights" in result.stderr
    text = result.stdout
    for word in (
        "40 samples by leaves",
        "BN loss",
        "class balance",
        "of 10 classes seen",
        "diversity",
        "samples a second",
    ):
        assert word in text
    assert "accuracy" not in text.lower()
    assert f"pictures of it in {tmp_path / 'sheet.png'}" in text
    bank = dx.Bank.open(tmp_path / "bank")
    assert len(bank) == 40
    opened = dx.open_model("cifar:resnet8", arguments={"width": 2})
    wanted = dx.synthesize(
        opened.model, shape=(3, 32, 32), n=40, seed=0, method="leaves", spec=opened.spec, progress=False
    )
    assert torch.equal(everything(tmp_path / "bank"), torch.cat([batch.x for batch in wanted]))
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.format == "PNG"
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["bank", "sheet.png"]


def test_json_and_options_of_the_method(tmp_path: Path) -> None:
    arguments = ("--method", "inversion", "-n", "8", "--seed", "3", "--set", "iterations=1", "--set", "start=leaves")
    told = json.loads(done(*NET, *arguments, "--out", tmp_path / "bank", "--json"))
    assert told["folder"] == str(tmp_path / "bank")
    assert told["provenance"]["seed"] == 3
    assert told["provenance"]["options"]["start"] == "leaves"
    assert told["provenance"]["options"]["settings"]["iterations"] == 1
    assert told["provenance"]["options"]["settings"]["ce"] == Inversion().ce
    assert told["quality"]["rows"] == 8
    assert told["quality"]["disagreement"] is None
    assert 0 < told["quality"]["confidence"] <= 1


def test_killed_it_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = importlib.import_module("dynext.zeroshot.synth.synthesize")
    write = made.write_shard
    command = (*NET, "--method", "pink", "-n", "300", "--out")

    def dying(folder: Path, number: int, x: torch.Tensor) -> None:
        if number == 1:
            raise KeyboardInterrupt
        write(folder, number, x)

    with monkeypatch.context() as patch:
        patch.setattr(made, "write_shard", dying)
        result = run(*command, tmp_path / "bank")
        assert result.exit_code == 130
        assert "The same command again goes on" in result.stderr
    written: list[int] = []
    monkeypatch.setattr(made, "write_shard", lambda *a: (written.append(a[1]), write(*a)))
    done(*command, tmp_path / "bank")
    assert written == [1]
    done(*command, tmp_path / "whole")
    assert torch.equal(everything(tmp_path / "bank"), everything(tmp_path / "whole"))
    done(*command, tmp_path / "bank")
    assert written == [1, 0, 1], "a finished bank was made again"


def test_against_a_dynamic_net(net: Path, tmp_path: Path) -> None:
    quick = ("-n", "8", "--set", "iterations=1", "--set", "start=leaves", "--against", net, "--json")
    told = json.loads(done(*NET, "--method", "inversion", *quick, "--out", tmp_path / "bank"))
    assert told["provenance"]["options"]["against"].startswith("DynamicNet ")
    assert told["quality"]["disagreement"] > 0
    result = run(*NET, "--method", "leaves", "-n", "8", "--against", net, "--out", tmp_path / "leaves")
    assert "leaves makes the same samples for every student" in result.stderr
    assert "disagreement" in result.stdout


def test_patches_of_an_image_file(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (80, 90, 3), dtype=np.uint8)).save(tmp_path / "photo.jpg")
    command = (*NET, "--method", "patches", "-n", "8", "--out", tmp_path / "bank", "--json")
    told = json.loads(done(*command, "--image", tmp_path / "photo.jpg"))
    assert told["provenance"]["options"]["image"].startswith("photo.jpg ")
    assert "give image=" in refused(*command[:-2], tmp_path / "other")


def test_a_contact_sheet_shows_every_row_that_fits(tmp_path: Path) -> None:
    opened = dx.open_model("cifar:resnet8", arguments={"width": 2})
    bank = dx.synthesize(opened.model, shape=(3, 32, 32), n=70, seed=0, spec=opened.spec, progress=False)
    write_sheet(bank, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        width, height = picture.size
    assert abs(height / width - (SHOWN / COLUMNS) / COLUMNS) < 0.1
    gray = dx.synthesize(torch.nn.Flatten(), shape=(5, 4, 4), n=2, seed=0, method="gaussian", progress=False)
    with pytest.raises(SourceError, match="5 channels cannot be shown"):
        write_sheet(gray, tmp_path / "five.png")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_asked_for_what_it_knows(method: str) -> None:
    assert method_options(method, ()) == {}
    with pytest.raises(SourceError, match=f"method {method} has no option colour; it has"):
        method_options(method, (("colour", 1),))


def test_values_must_be_of_the_options_kind() -> None:
    assert method_options("impressions", (("betas", [1.0, 0.5]),))["settings"].betas == (1.0, 0.5)
    assert method_options("mixture", (("methods", ["pink", "leaves"]),)) == {"methods": ("pink", "leaves")}
    assert method_options("inversion", (("lr", 1), ("flip", False)))["settings"] == Inversion(lr=1, flip=False)
    wrong: list[tuple[str, Any]] = [("iterations", "many"), ("iterations", 1.5), ("iterations", True), ("flip", 1)]
    for pair in wrong:
        with pytest.raises(SourceError, match=f"{pair[0]}=.*give a value like"):
            method_options("inversion", (pair,))


def test_mistakes_are_told_before_any_work(tmp_path: Path) -> None:
    command = (*NET, "--out", tmp_path / "bank")
    assert "0 is not in the range" in refused(*command, "-n", "0")
    assert "'leavs' is not one of" in refused(*command, "--method", "leavs")
    assert "method leaves has no option depth" in refused(*command, "--method", "leaves", "--set", "depth=2")
    assert "does not end with .png" in refused(*command, "--sheet", tmp_path / "sheet.jpg")
    assert "there is no folder" in refused(*command, "--sheet", tmp_path / "nowhere" / "sheet.png")
    assert "does not exist" in refused(*command, "--against", tmp_path / "nowhere")
    (tmp_path / "diary.txt").write_text("dear diary")
    assert "holds other files and no bank" in refused(*NET, "--out", tmp_path)
    assert "is a file; name a folder" in refused(*NET, "--out", tmp_path / "diary.txt")
    assert not (tmp_path / "bank").exists()
    done(*command, "--method", "pink", "-n", "4")
    assert "another run's bank (method was pink, is leaves" in refused(*command, "--method", "leaves", "-n", "4")
