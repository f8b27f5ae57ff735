"""Predict from the shell: one line an image, the library's answers."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from shell import done, refused

import dynext as dx


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.png" for name in ("red", "gray", "tall")]
    Image.new("RGB", (32, 32), (255, 0, 0)).save(paths[0])
    Image.new("L", (64, 64), 128).save(paths[1])
    Image.effect_noise((30, 90), 60).save(paths[2])
    return paths


def test_json_lines_are_what_run_says(net: Path, pictures: list[Path]) -> None:
    told = [json.loads(line) for line in done("predict", net, *pictures, "--json").splitlines()]
    kept = dx.load(net)
    x = kept.spec.normalize(torch.stack([dx.data.image(path, kept.spec) for path in pictures]))
    expected = kept.net.run(x, kept.policy)
    assert [answer["image"] for answer in told] == [str(path) for path in pictures]
    assert [answer["class"] for answer in told] == expected.logits.argmax(1).tolist()
    assert [answer["exit"] for answer in told] == expected.exit.tolist()
    assert [answer["macs"] for answer in told] == expected.macs.tolist()
    for answer, logits, e in zip(told, expected.logits, expected.exit, strict=True):
        sure = float((logits / kept.policy.temperature_e[int(e)]).softmax(0).max())
        assert answer["confidence"] == pytest.approx(sure, abs=1e-5)
        assert answer["macs_share"] == pytest.approx(answer["macs"] / kept.net.trunk_macs_e[-1])


def test_text_has_a_line_an_image_and_names_the_class(net: Path, pictures: list[Path]) -> None:
    card = json.loads((net / "net.json").read_text())
    card["class_names"] = [f"kind {k}" for k in range(10)]
    (net / "net.json").write_text(json.dumps(card))
    lines = done("predict", net, *pictures).splitlines()
    assert len(lines) == 5
    assert lines[0].split() == ["image", "class", "confidence", "exit", "MACs"]
    assert all(str(path) in line and "kind " in line for path, line in zip(pictures, lines[2:], strict=True))


def test_mistakes(net: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no image")
    assert "is no image that can be read" in refused("predict", net, tmp_path / "note.txt")
    assert "does not exist" in refused("predict", net, tmp_path / "gone.png")
    assert "Missing argument 'IMAGES...'" in refused("predict", net)
