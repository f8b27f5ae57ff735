"""Prune from the shell: a smaller net comes out, works like any other, and what cannot be done is one line."""

import importlib
import json
from pathlib import Path

import pytest
from shell import done, refused

import dynext as dx

command = importlib.import_module("dynext.cli.commands.prune")


@pytest.mark.parametrize("rows", ["unlabelled", "synthesized"])
def test_a_smaller_net_comes_out(net: Path, images: Path, tmp_path: Path, rows: str) -> None:
    given = ["--unlabelled", images] if rows == "unlabelled" else ["--samples", 64]
    asked = ["--budget", 0.8, "--quantize", "int8", "--steps", 2, *given, "-o", tmp_path / "small"]
    before = dx.load(net)
    told = json.loads(done("prune", net, *asked, "--json"))
    small = dx.load(tmp_path / "small")
    assert small.net.staged.macs <= 0.8 * before.net.staged.macs
    assert told["pruned"]["plan"]["macs_e"][-1] == small.net.staged.macs
    assert small.net.int8 is not None
    assert small.provenance["pruned"] == told["pruned"]
    assert small.policy.basis == "teacher"
    assert 0 <= told["pruned"]["agreement"] <= 1
    text = done("evaluate", tmp_path / "small", "--data", images)
    assert "Accuracy" in text
    assert (tmp_path / "small" / "report.html").exists()


def test_what_the_full_net_has_lost_is_not_lost_again(
    net: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent, choose = [], command.choose_cautiously

    def watched(*given: object, **options: object) -> object:
        spent.append(options["spent"])
        return choose(*given, **options)

    monkeypatch.setattr(command, "choose_cautiously", watched)
    asked = ["--budget", 0.7, "--steps", 0, "--unlabelled", images, "-o", tmp_path / "small"]
    told = json.loads(done("prune", net, *asked, "--json"))
    assert spent == [1 - told["pruned"]["agreement"]]
    assert spent[0] > 0


def test_text_says_what_goes_and_what_is_left(net: Path, images: Path, tmp_path: Path) -> None:
    given = ["--unlabelled", images, "--steps", 0, "-o", tmp_path / "small"]
    text = done("prune", net, "--budget", 0.9, *given)
    for told in (
        "ranked by magnitude",
        "channels",
        "MACs of the full net",
        "answers like the one before",
        "smaller net",
    ):
        assert told in text


def test_what_cannot_be_done_is_one_line(net: Path, images: Path, tmp_path: Path) -> None:
    out = ["-o", tmp_path / "small"]
    assert "nothing to do" in refused("prune", net, *out)
    given = ["--unlabelled", images, *out]
    assert "out of reach" in refused("prune", net, "--budget", 0.0001, *given)
    assert "blocks to leave out" in refused("prune", net, "--blocks", 9, *given)
    assert not (tmp_path / "small").exists()


def test_a_net_that_cannot_be_pruned_is_refused_before_rows_are_made(
    net: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = dx.load(net)
    coarse = dx.prune.quantize(kept.net, dx.data.array(images, kept.spec), least_macs=0)
    dx.save(coarse, tmp_path / "coarse", policy=kept.policy, spec=kept.spec, model_recipe=kept.model_recipe)
    monkeypatch.setattr(command, "synthesize", lambda *_, **__: pytest.fail("samples were synthesized first"))
    assert "is in 8 bits" in refused("prune", tmp_path / "coarse", "--budget", 0.5, "-o", tmp_path / "small")
