"""Align from the shell: a folder that opens, thresholds chosen anew, no label looked at; it goes on after a kill."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from shell import done, refused, run

import dynext as dx

FEW = ("--steps", "3", "--samples", "48")


def test_a_folder_is_aligned_in_place(net: Path, images: Path) -> None:
    before = dx.load(net)
    told = json.loads(done("align", net, "--source", images, *FEW, "--max-drop", "1", "--json"))
    after = dx.load(net)
    x = torch.zeros(2, 3, 32, 32)
    assert torch.equal(after.net(x), before.net(x))
    assert not torch.equal(after.net.all_exits(x), before.net.all_exits(x))
    assert after.policy.to_dict() == told["policy"]
    assert told["alignment"]["rows"] == 36
    assert told["after"]["num_rows"] == told["before"]["num_rows"] == len(after.table) == 12
    assert told["after"]["basis"] == "teacher"
    assert after.provenance["alignment"]["loss"] == "cosine"
    assert after.provenance["thresholds"] == f"chosen anew on 12 unlabelled samples of {images}, kept apart"
    assert (net / "report.html").stat().st_size > 1000
    assert [p.name for p in net.parent.iterdir() if "work" in p.name] == []


def test_it_tells_before_and_after(net: Path, images: Path, tmp_path: Path) -> None:
    card = (net / "net.json").read_text()
    text = done("align", net, "--source", images, *FEW, "--loss", "barlow", "--views", "2", "-o", tmp_path / "new")
    for word in ("aligned by barlow", "Before alignment", "at that old policy", "chosen anew", "12 unlabelled samples"):
        assert word in text
    assert "accuracy" not in text.lower()
    assert (net / "net.json").read_text() == card
    assert dx.load(tmp_path / "new").net.num_exits == dx.load(net).net.num_exits


@pytest.mark.parametrize("trunk", ["frozen", "joint"])
def test_rows_made_from_the_net_alone_will_do(net: Path, trunk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("dynext.cli.commands.align"), "METHOD", "pink")
    told = json.loads(done("align", net, "--source", "bank", *FEW, "--trunk", trunk, "--json"))
    assert told["after"]["synthetic"]
    assert (told["alignment"]["drift"] is not None) == (trunk == "joint")
    assert dx.load(net).policy.to_dict() == told["policy"]


def test_killed_it_goes_on_and_ends_the_same(
    net: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("align", net, "--source", images, *FEW, "-o")
    done(*command, tmp_path / "whole")
    module = importlib.import_module("dynext.cli.commands.align")
    with monkeypatch.context() as patch:
        patch.setattr(module, "rechoose", lambda *given, **more: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*command, tmp_path / "new").exit_code == 130
    assert list(tmp_path.glob(".new.work-*/aligning.ckpt"))
    done(*command, tmp_path / "new")
    whole, new = dx.load(tmp_path / "whole"), dx.load(tmp_path / "new")
    assert all(torch.equal(t, new.net.state_dict()[name]) for name, t in whole.net.state_dict().items())
    assert whole.policy == new.policy
    assert not list(tmp_path.glob(".new.work-*"))


def test_what_is_no_source_is_refused(net: Path, tmp_path: Path) -> None:
    assert "no nowhere; give a folder of images" in refused("align", net, "--source", "nowhere")
    np.savez(tmp_path / "three.npz", x=np.zeros((3, 3, 32, 32), np.uint8))
    assert "3 samples in" in refused("align", net, "--source", tmp_path / "three.npz")
    assert "'simclr' is not one of" in refused("align", net, "--source", "bank", "--loss", "simclr")
