"""Convert from the shell: what is saved, what is printed, what goes on after an interruption, what is refused."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shell import SMALL, TINY, done, refused, run

import dynext as dx


def test_it_saves_a_net_that_answers_like_the_static_one(net: Path) -> None:
    kept = dx.load(net)
    static = dx.open_model("cifar:resnet8", arguments={"width": 2}).model
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(kept.net(x), static(x), rtol=1e-4, atol=1e-5)
    assert kept.net.exit_names == ("layer1", "layer2", "output")
    assert kept.provenance["calibration_rows"] == 60
    assert kept.provenance["training"] == {"kind": "frozen", "steps": 3}
    assert [timing["batch"] for timing in kept.provenance["timing"]] == [1, 4]
    assert (net / "report.html").read_text().count("<svg") >= 2
    assert not list(net.parent.glob(".*"))


def test_it_prints_one_table_and_both_clocks(tmp_path: Path) -> None:
    text = done("convert", *TINY, "-o", tmp_path / "net", *SMALL)
    assert "synthesized samples" in text
    for title in ("depth", "MACs", "leave", "agree", "T", "ECE"):
        assert f" {title}" in text
    assert "real samples leave elsewhere" in text
    assert "speed-up" in text
    assert "accuracy" not in text.lower()
    assert f"open {tmp_path / 'net' / 'report.html'}" in text


def test_rows_that_were_made_before(tmp_path: Path) -> None:
    done("synthesize", *TINY[:3], "--method", "pink", "-n", "32", "--out", tmp_path / "bank")
    told = json.loads(done("convert", *TINY, "-o", tmp_path / "net", *SMALL, "--bank", tmp_path / "bank", "--json"))
    assert told["provenance"]["method"] == "pink"
    assert told["provenance"]["rows"] == 32


def test_jointly(tmp_path: Path) -> None:
    joint = ("--train", "joint", "--joint-steps", "2")
    told = json.loads(done("convert", *TINY, "-o", tmp_path / "net", *SMALL, *joint, "--json"))
    assert told["provenance"]["training"] == {"kind": "joint", "steps": 3, "joint_steps": 2}
    assert told["provenance"]["joint"]["steps"] == 2
    static = dx.open_model("cifar:resnet8", arguments={"width": 2}).model
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(dx.load(tmp_path / "net").net(x), static(x))


def test_distilled_on_calibration_as_json(tmp_path: Path, images: Path) -> None:
    arguments = ("--calibrate", images, "--distill-on-calibration", "--budget", "2", "--seed", "3", "--json")
    told = json.loads(done("convert", *TINY, "-o", tmp_path / "net", *SMALL, *arguments))
    assert told["report"]["basis"] == "teacher"
    assert told["report"]["num_rows"] == 60
    assert told["provenance"]["calibrate"]["distill"] is True
    assert "the exits were distilled on" in refused("evaluate", tmp_path / "net", "--unlabelled", images)
    assert told["provenance"]["seed"] == 3
    assert "which the exits have seen" in told["provenance"]["timed_on"]
    assert told["folder"] == str(tmp_path / "net")


def test_an_interrupted_conversion_goes_on_and_ends_the_same(
    tmp_path: Path, net: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("dynext.zeroshot.convert_steps")
    made = importlib.import_module("dynext.zeroshot.synth.synthesize")
    command = ("convert", *TINY, "-o", tmp_path / "again", *SMALL, "--calibrate", images)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "distill", stop)
        assert run(*command).exit_code == 130
    assert not (tmp_path / "again").exists()
    assert len(list(tmp_path.glob(".again.work-*"))) == 1

    written: list[int] = []
    keep: Callable[..., None] = made.write_shard
    monkeypatch.setattr(made, "write_shard", lambda *a: (written.append(1), keep(*a)))
    done(*command)
    assert not written, "samples that were there were synthesized again"
    first, second = dx.load(net), dx.load(tmp_path / "again")
    torch.testing.assert_close(second.net.state_dict(), first.net.state_dict(), rtol=0, atol=0)
    assert second.policy == first.policy
    assert not list(tmp_path.glob(".again.*"))


def test_another_conversion_does_not_go_on_with_this_ones_work(tmp_path: Path, images: Path) -> None:
    opened = dx.open_model("cifar:resnet8", arguments={"width": 2})
    other = dx.open_model("cifar:resnet8", arguments={"width": 4})
    rows = dx.data.array(images, opened.spec)
    folder = importlib.import_module("dynext.cli.commands.convert").work_folder
    asked = [(opened, None, 0), (opened, None, 1), (opened, rows, 0), (opened, rows.subset(torch.arange(9)), 0)]
    found = {folder(tmp_path / "net", o.model, seen, {"seed": s}) for o, seen, s in [*asked, (other, None, 0)]}
    assert len(found) == 5
    assert {path.parent for path in found} == {tmp_path}


def test_ones_own_model_needs_its_file_again(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(),\n"
        "                         nn.Linear(64, 3))\n"
    )
    model, net = f"{tmp_path / 'mine.py'}:make", tmp_path / "net"
    np.savez(tmp_path / "rows.npz", x=np.zeros((4, 8, 8), np.uint8))
    done("convert", model, "--shape", "1x8x8", "--after", "1", "-o", net, *SMALL)
    assert f"or --model {model} for this time" in refused("evaluate", net, "--data", tmp_path / "rows.npz")
    assert "4 samples" in done("evaluate", net, "--data", tmp_path / "rows.npz", "--model", model)


def test_rows_that_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "radar.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(),\n"
        "                         nn.Linear(64, 3))\n"
    )
    rows = np.random.default_rng(0).integers(0, 256, (9, 2, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "rows.npz", x=rows)
    model, net = f"{tmp_path / 'radar.py'}:make", tmp_path / "net"
    done("convert", model, "--shape", "2x8x8", "--after", "1", "-o", net, *SMALL, "--calibrate", tmp_path / "rows.npz")
    assert "<h2>Inputs</h2>" not in (net / "report.html").read_text()
    done("evaluate", net, "--unlabelled", tmp_path / "rows.npz", "--choose", "--model", model)


@pytest.mark.parametrize("kind", ["skipnet", "static"])
def test_samples_may_skip_blocks(tmp_path: Path, images: Path, kind: str) -> None:
    net = ("cifar:resnet14", "--argument", "width=2", "--after", "layer1,layer2", "-o", tmp_path / "net")
    text = done("convert", *net, *SMALL, "--calibrate", images, "--max-drop", "1", "--skip-steps", "4", "--train", kind)
    kept = dx.load(tmp_path / "net")
    assert kept.provenance["skip"]["kind"] == kind
    assert kept.table.keep_g == kept.policy.skip_rule
    told = done("evaluate", tmp_path / "net", "--data", images)
    assert "90%" in told
    if kind == "static":  # untrained gates cost more than they save, a fixed set of blocks costs nothing
        assert kept.policy.skip_rule is not None
        assert "stages that may be skipped a sample runs" in text
        assert "stages that may be skipped a sample runs" in told
    assert "speed-up" in done("bench", tmp_path / "net", "--data", images)
    done("report", tmp_path / "net", "--data", images)
    assert "Test samples" in (tmp_path / "net" / "report.html").read_text()
    done("evaluate", tmp_path / "net", "--unlabelled", images, "--choose", "--max-drop", "0")
    assert dx.load(tmp_path / "net").policy.skip_rule is None


def test_mistakes_are_told_before_any_work(tmp_path: Path, images: Path) -> None:
    out = tmp_path / "net"
    command = ("convert", *TINY, "-o", out)
    assert "-1 is not in the range" in refused(*command, "--steps", "-1")
    assert "0 is not in the range" in refused(*command, "--samples", "0")
    assert "2.0 is not in the range" in refused(*command, "--max-drop", "2")
    assert "leaves" in refused(*command, "--method", "leavs")
    assert "holds no bank that can be read" in refused(*command, "--bank", tmp_path)
    assert "blockdrop" in refused(*command, "--train", "lottery")
    flat = ("convert", "torchvision:vgg11", "-o", out, "--train", "static")
    assert "no residual block that a sample may skip" in refused(*flat)
    assert "no nowhere; give a folder of images" in refused(*command, "--calibrate", "nowhere")
    assert "give --calibrate DATA too" in refused(*command, "--distill-on-calibration")
    np.savez(tmp_path / "gray.npz", x=np.zeros((4, 28, 28), np.uint8))
    assert "samples have shape (1, 28, 28), the model expects (3, 32, 32)" in refused(
        *command, "--calibrate", tmp_path / "gray.npz"
    )
    assert not out.exists()
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "today.txt").write_text("dear diary")
    assert "holds other files and no dynamic net" in refused("convert", *TINY, "-o", tmp_path / "diary")
    assert "is a file; name a folder" in refused("convert", *TINY, "-o", images)
    assert "give cpu or cuda" in refused(*command, "--device", "tpu")


def test_where_nothing_is_proven_the_least_unsafe_can_be_had(images: Path, tmp_path: Path) -> None:
    asked = ("convert", *TINY, *SMALL, "--calibrate", images)
    done(*asked, "-o", tmp_path / "static")
    done(*asked, "-o", tmp_path / "least", "--when-unsafe", "least")
    static, least = (dx.load(tmp_path / name) for name in ("static", "least"))
    assert static.policy.threshold_e[:-1] == (None, None)
    assert any(threshold is not None for threshold in least.policy.threshold_e[:-1])
    assert least.policy.note.startswith("not proven")
    assert least.provenance["target"]["when_unsafe"] == "least"
