"""The demo on a stand-in for the bundled net: the story is told, the last net is kept."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from shell import done, refused

import dynext as dx
from dynext.cli.demo.trail import ascii_picture
from dynext.data import bundled


@pytest.fixture
def _stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A net of random weights under the bundled one's name, the real sample beside it."""
    folder = tmp_path / "bundled"
    folder.mkdir()
    shutil.copy(bundled.bundled_file("fashion_sample.npz"), folder)
    with dx.seeded(0):
        net = dx.models.ResNet(8, width=2, channels=1)
    save_file(net.state_dict(), folder / "fashion_resnet20.safetensors")
    (folder / "fashion_resnet20.json").write_text(json.dumps({"config": {"depth": 8, "width": 2}}))
    monkeypatch.setattr(bundled, "FOLDERS", (folder,))
    module = importlib.import_module("dynext.cli.demo.command")
    monkeypatch.setattr(module, "QUICK", module.Sizes(samples=32, steps=2, test=64, timing_s=0.0))


@pytest.mark.usefixtures("_stand_in")
def test_the_whole_story(tmp_path: Path) -> None:
    text = done("demo", "--quick", "--out", tmp_path / "story", "--seed", "1")
    headings = ["1. The static net", "2. Made dynamic without any image", "3. The same exits", "4. The same 500 images"]
    places = [text.index(heading) for heading in (*headings, "What it comes to", "An easy image", "A hard one")]
    assert places == sorted(places)
    table = text[places[4] :].splitlines()[1:7]
    assert [line.split("  ")[0].strip() for line in table[2:]] == [
        "static net", "no image at all", "500 unlabelled images", "also distilled on them",
    ]  # fmt: skip
    assert "labels of 64 Fashion-MNIST test images, which nothing was chosen on; seed 1" in text
    assert "A quick run" in text
    assert str((tmp_path / "story" / "report.html").absolute()) in text
    kept = dx.load(tmp_path / "story")
    assert kept.class_names == dx.data.FASHION_CLASSES
    assert kept.provenance["calibrate"]["distill"] is True
    page = (tmp_path / "story" / "report.html").read_text()
    assert all(title in page for title in ("no image at all", "500 unlabelled images", "also distilled on them"))


@pytest.mark.usefixtures("_stand_in")
def test_the_static_nets_figures_are_its_own(tmp_path: Path) -> None:
    text = done("demo", "--quick", "--out", tmp_path / "story")
    opened, test = dx.open_model("bundled:fashion_resnet20"), dx.data.bundled_sample()[1]
    with torch.inference_mode():
        right = float((opened.model(test.take(torch.arange(64)).x).argmax(1) == test.y[:64]).double().mean())
    assert f"Accuracy {right:.2%} on 64 Fashion-MNIST test images" in text
    static = next(line for line in text.splitlines() if line.startswith("static net"))
    assert static.split()[2] == f"{right:.2%}"


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "today.txt").write_text("dear diary")
    assert "holds other files and no dynamic net" in refused("demo", "--out", tmp_path)


def test_a_picture_in_characters() -> None:
    pixels = torch.zeros(1, 4, 3)
    pixels[0, 2:, 1] = 1.0
    assert ascii_picture(pixels) == ["   ", " @ "]
