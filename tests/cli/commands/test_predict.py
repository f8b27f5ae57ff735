"""Predict from the shell: one line an image, the library's answers."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from shell import done, refused, run

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


def test_folders_are_walked_and_torn_files_listed(net: Path, pictures: list[Path], tmp_path: Path) -> None:
    inside = tmp_path / "photos" / "deep"
    inside.mkdir(parents=True)
    (inside / ".DS_Store").write_bytes(b"x")
    (inside / "TORN.JPG").write_bytes(pictures[0].read_bytes()[:40])
    for path in pictures[:2]:
        path.replace(inside / path.name)
    (tmp_path / "photos" / "link.png").symlink_to(pictures[2])
    (tmp_path / "none").mkdir()
    result = run("predict", net, tmp_path / "photos", pictures[2], tmp_path / "none", "--json")
    assert result.exit_code == 0
    told = [json.loads(line) for line in result.stdout.splitlines()]
    names = ["deep/TORN.JPG", "deep/gray.png", "deep/red.png", "link.png"]
    assert [answer["image"] for answer in told] == [
        *(str(tmp_path / "photos" / name) for name in names),
        str(pictures[2]),
    ]
    assert ["error" in answer for answer in told] == [True, False, False, False, False]
    assert "TORN.JPG is no image that can be read" in told[0]["error"]
    assert {**told[3], "image": ""} == {**told[4], "image": ""}
    kept = dx.load(net)
    x = kept.spec.normalize(dx.data.image(inside / "red.png", kept.spec)[None])
    assert told[2]["class"] == kept.net.run(x, kept.policy).logits.argmax(1).item()
    assert "Note: 1 of 5 image files cannot be read, skipped: " in result.stderr
    assert f"Note: no image in {tmp_path / 'none'}" in result.stderr
    lines = done("predict", net, tmp_path / "photos").splitlines()
    assert [line.split()[0] for line in lines[2:]] == [str(tmp_path / "photos" / name) for name in names[1:]]
    assert "TORN.JPG is no image" in refused("predict", net, tmp_path / "photos", "--strict")


def test_more_images_than_are_held_at_once(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(7):
        Image.effect_noise((32, 32), 90).save(tmp_path / f"{i}.png")
    (tmp_path / "4.png").write_bytes(b"torn")
    whole = done("predict", net, tmp_path, "--json")
    monkeypatch.setattr(importlib.import_module("dynext.cli.commands.predict"), "AT_ONCE", 2)
    parts = done("predict", net, tmp_path, "--json")
    for one, other in zip(parts.splitlines(), whole.splitlines(), strict=True):
        assert json.loads(one) == pytest.approx(json.loads(other), abs=1e-5)


def test_mistakes(net: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no image")
    assert "is no image that can be read" in refused("predict", net, tmp_path / "note.txt")
    (tmp_path / "empty").mkdir()
    assert "no image in" in refused("predict", net, tmp_path / "empty")
    assert "does not exist" in refused("predict", net, tmp_path / "gone.png")
    assert "Missing argument 'IMAGES...'" in refused("predict", net)
