"""Bench from the shell: which samples, what it writes."""

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from shell import done, refused

import dynext as dx


def test_on_noise_it_says_that_leaving_means_nothing(net: Path) -> None:
    text = done("bench", net)
    assert "random noise" in text
    assert "says nothing about real ones" in text


def test_on_data_it_does_not(net: Path, images: Path) -> None:
    told = json.loads(done("bench", net, "--data", images, "--json"))
    assert told["real"] is True
    assert sum(told["leaving"]) == pytest.approx(1)
    assert [timing["batch"] for timing in told["timing"]] == [1, 64]
    for timing in told["timing"]:
        assert timing["speedup"] == pytest.approx(timing["static_ms"] / timing["dynamic_ms"])
    assert "noise" not in done("bench", net, "--data", images, "--batch", "3")


def test_rows_that_are_sorted_by_class_are_not_timed_by_the_first_class_alone(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.arange(200, dtype=np.uint8).repeat(3 * 32 * 32).reshape(200, 3, 32, 32)  # sample r is all r
    np.savez(tmp_path / "sorted.npz", x=x)
    module, timed = importlib.import_module("dynext.cli.commands.bench"), []
    monkeypatch.setattr(module, "TIMED_ROWS", 100)
    monkeypatch.setattr(module, "side_by_side", lambda static, net, policy, x, batches: timed.append(x) or ())
    done("bench", net, "--data", tmp_path / "sorted.npz")
    pixels_n = dx.load(net).spec.pixels(timed[0])[:, 0, 0, 0] * 255
    assert len(pixels_n) == 100
    assert (pixels_n[:50] >= 100).sum() > 10


def test_write_keeps_stage_times_and_everything_else(net: Path) -> None:
    before, page = dx.load(net), (net / "report.html").read_bytes()
    pictures = (net / "pictures.safetensors").read_bytes()
    done("bench", net, "--write")
    after = dx.load(net)
    assert after.cost is not None
    assert before.cost is not None
    assert after.cost != before.cost
    assert after.policy == before.policy
    assert after.provenance == before.provenance
    torch.testing.assert_close(after.net.state_dict(), before.net.state_dict(), rtol=0, atol=0)
    assert (net / "report.html").read_bytes() == page
    assert (net / "pictures.safetensors").read_bytes() == pictures


def test_a_budget_in_milliseconds_chooses_thresholds_and_keeps_them(net: Path) -> None:
    before = dx.load(net)
    static_ms = dx.load(net).table.trunk_ms_e[-1]
    told = done("bench", net, "--budget-ms", 100 * static_ms)
    after = dx.load(net)
    assert "of the static milliseconds" in after.policy.note
    assert after.policy.note in told
    assert dx.simulate(after.table, after.policy).ms <= 100 * static_ms
    assert after.policy.temperature_e == before.policy.temperature_e
    done("bench", net, "--write", "--budget-ms", 1e6)
    timed = dx.load(net)
    assert timed.table.trunk_ms_e[-1] == pytest.approx(timed.cost.static(1))
    assert timed.table.trunk_ms_e != before.table.trunk_ms_e
    far = refused("bench", net, "--budget-ms", 1e-9)
    assert re.search(r"budget_ms 1e-09 cannot be met: the cheapest within reach is \S+ ms a sample", far)
    untimed = dx.load(net)
    table = replace(untimed.table, trunk_ms_e=None, head_ms_e=None)
    dx.save(untimed.net, net, policy=untimed.policy, spec=untimed.spec, model_recipe=untimed.model_recipe, table=table)
    assert "measure them: dynext bench DIR --write" in refused("bench", net, "--budget-ms", 5)


def test_mistakes(net: Path, tmp_path: Path) -> None:
    assert "0 is not in the range" in refused("bench", net, "--batch", "0")
    np.savez(tmp_path / "none.npz", x=np.zeros((0, 3, 32, 32), np.uint8))
    assert "none.npz holds no sample" in refused("bench", net, "--data", tmp_path / "none.npz")
