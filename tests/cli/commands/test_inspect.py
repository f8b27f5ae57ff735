"""The stages of a net, as text and as JSON."""

import json
from pathlib import Path

import pytest
import torch
from shell import done, refused

from dynext.graph.split import split
from dynext.models.resnet import ResNet


def test_the_table_shows_stages_and_automatic_exits() -> None:
    text = done("inspect", "cifar:resnet8", "--argument", "width=2")
    assert "random weights: expects 3x32x32, answers 10 classes" in text
    parameters = sum(p.numel() for p in ResNet(8, width=2).parameters())
    assert f"{parameters:,} parameters" in text
    staged = split(ResNet(8, width=2).eval(), torch.zeros(1, 3, 32, 32))
    assert staged.table().splitlines()[1] in text
    assert f"stand after {', '.join(staged.cuts)} " in text


def test_json_agrees_with_the_library() -> None:
    told = json.loads(done("inspect", "cifar:resnet8", "--argument", "width=2", "--after", "layer1,layer2", "--json"))
    staged = split(ResNet(8, width=2).eval(), torch.zeros(1, 3, 32, 32), ["layer1", "layer2"])
    assert [stage["ends_after"] for stage in told["stages"]] == ["layer1", "layer2", "output"]
    assert [stage["macs"] for stage in told["stages"]] == [stage.macs for stage in staged.stages]
    assert told["macs"] == sum(stage["macs"] for stage in told["stages"])
    assert sum(stage["share"] for stage in told["stages"]) == pytest.approx(1)
    assert told["automatic_exits"] == list(split(ResNet(8, width=2).eval(), torch.zeros(1, 3, 32, 32)).cuts)


def test_blocks_are_stages_a_row_may_skip() -> None:
    arguments = ("inspect", "cifar:resnet8", "--argument", "width=2", "--after", "0.9", "--json")
    coarse = json.loads(done(*arguments))["stages"]
    fine = json.loads(done(*arguments, "--granularity", "block"))["stages"]
    assert len(fine) > len(coarse)
    assert any(stage["skippable"] for stage in fine)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def make(width):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(48, width), nn.ReLU(), nn.Linear(width, 3))\n"
    )
    model = f"{tmp_path / 'mine.py'}:make"
    told = json.loads(done("inspect", model, "--shape", "3x4x4", "--argument", "width=5", "--json"))
    assert told["macs"] == 48 * 5 + 5 * 3
    assert "Give shape" in refused("inspect", model, "--argument", "width=5")


def test_mistakes() -> None:
    assert "did you mean resnet18" in refused("inspect", "torchvision:resnet81")
    assert "did you mean layer3" in refused("inspect", "cifar:resnet8", "--after", "layer9")
    assert "such as 3x32x32. See" in refused("inspect", "cifar:resnet8", "--shape", "3x32")
    assert "no list of numbers" in refused("inspect", "cifar:resnet8", "--mean", "a,b")
    assert "no KEY=VALUE" in refused("inspect", "cifar:resnet8", "--argument", "width")
    assert "does not exist" in refused("inspect", "cifar:resnet8", "--checkpoint", "nowhere.pt")
