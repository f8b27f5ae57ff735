"""Patches show parts of the one image that was given, at any size, gray or color."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close

from dynext.errors import SourceError
from dynext.seeding import generator
from dynext.types import InputSpec
from dynext.zeroshot.synth.method import Sampler, Work
from dynext.zeroshot.synth.patches import Patching, patches
from dynext.zeroshot.synth.synthesize import synthesize

PLAIN = Patching(turn=0.0, brightness=0.0, contrast=0.0, saturation=0.0)
NET = nn.Identity()


def spec(*shape: int) -> InputSpec:
    return InputSpec(shape=shape, mean=(0.0,) * shape[0], std=(1.0,) * shape[0])


def slope(height: int = 40, width: int = 60) -> torch.Tensor:
    """Red grows to the right, green downwards; blue is even."""
    across, down = (
        torch.linspace(0, 1, width).expand(height, -1),
        torch.linspace(0, 1, height)[:, None].expand(-1, width),
    )
    return torch.stack([across, down, torch.full_like(across, 0.5)])


def cut(image, shape: tuple[int, ...] = (3, 8, 12), n: int = 64, settings: Patching = PLAIN) -> torch.Tensor:
    return patches(NET, spec(*shape), 0, image=image, settings=settings).sample(n, generator(1))


def test_a_patch_is_a_part_of_the_image_and_keeps_its_proportions() -> None:
    x = cut(slope())
    right, down = x[:, 0, :, -1] - x[:, 0, :, 0], x[:, 1, -1] - x[:, 1, 0]
    assert_close(x[:, 2], torch.full_like(x[:, 2], 0.5))
    mirrored = right[:, 0] < 0
    assert 10 < int(mirrored.sum()) < 54
    # A pixel is as wide as it is high: 11 steps across a 60 wide image, 7 down a 40 high one.
    assert_close(right.abs().mean(1) * 59 / 11, down.mean(1) * 39 / 7, rtol=1e-3, atol=1e-3)
    sizes = down.mean(1)
    assert float(sizes.max()) > 3 * float(sizes.min())
    assert float(sizes.max()) <= 0.9
    assert float(x.amin()) >= 0
    assert float(x.amax()) <= 1


def test_turns_stay_within_the_image_and_within_the_angle() -> None:
    x = cut(slope(), settings=Patching(turn=30.0, brightness=0.0, contrast=0.0, saturation=0.0))
    across = (x[:, 0, :, -1] - x[:, 0, :, 0]).mean(1).abs() * 59 / 11
    tilted = (x[:, 1, :, -1] - x[:, 1, :, 0]).mean(1) * 39 / 11
    angle = torch.rad2deg(torch.atan2(tilted.abs(), across))
    assert 20 < float(angle.max()) < 31
    frame = torch.nn.functional.pad(torch.full((3, 38, 58), 0.5), (1, 1, 1, 1), value=1.0)
    assert float((cut(frame, settings=Patching(turn=30.0)) == 1).float().mean()) < 0.05


def test_colors_change_by_row() -> None:
    even = torch.full((3, 40, 60), 0.4)
    assert_close(cut(even), torch.full((64, 3, 8, 12), 0.4))
    bright = cut(even, settings=Patching(turn=0.0, brightness=0.5, contrast=0.0, saturation=0.0))[:, 0, 0, 0]
    assert 0.2 <= float(bright.min()) < 0.28
    assert 0.52 < float(bright.max()) <= 0.6
    colored = torch.tensor([0.6, 0.3, 0.3])[:, None, None].expand(3, 40, 60)
    gray = cut(colored, settings=Patching(turn=0.0, brightness=0.0, contrast=0.0, saturation=1.0))
    span = gray[:, 0, 0, 0] - gray[:, 1, 0, 0]
    assert float(span.min()) < 0.05
    assert float(span.max()) > 0.5
    steep = cut(slope(), settings=Patching(turn=0.0, brightness=0.0, contrast=0.9, saturation=0.0))
    assert float((steep.std((1, 2, 3)) / cut(slope()).std((1, 2, 3))).max()) > 1.5


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 14), (1, 16, 8)])
def test_every_form_of_image(shape: tuple[int, ...], tmp_path: Path) -> None:
    pixels = (slope(64, 80) * 255).round().byte()
    last = pixels.permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(last).save(tmp_path / "photo.png")
    found = [cut(form, shape, n=6) for form in (pixels, last, tmp_path / "photo.png", str(tmp_path / "photo.png"))]
    assert found[0].shape == (6, *shape)
    assert all(torch.equal(found[0], other) for other in found[1:])
    gray = cut(last.mean(2).astype(np.uint8), shape, n=6)
    assert gray.shape == (6, *shape)
    assert float(gray.std()) > 0.01


def test_what_is_larger_is_shrunk_without_flicker() -> None:
    checks = ((torch.arange(256)[:, None] + torch.arange(256)) % 2).float()
    x = cut(checks.expand(3, -1, -1), (3, 8, 8), settings=Patching(scale=(0.8, 1.0), turn=0.0))
    assert float(x.std((1, 2, 3)).max()) < 0.1
    assert float(x.mean()) == pytest.approx(0.5, abs=0.1), "shrinking is averaging: half of the squares are white"


def test_what_cannot_be_cut_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="one image of yours; give image="):
        patches(NET, spec(3, 8, 8), 0)
    with pytest.raises(SourceError, match="20x15 pixels, samples 8x8; give an image with at least twice"):
        cut(torch.rand(3, 15, 20), (3, 8, 8))
    with pytest.raises(SourceError, match="is no image that can be read"):
        cut(tmp_path / "nowhere.png")
    with pytest.raises(SourceError, match=r"shape \[4, 40, 60\]"):
        cut(torch.rand(4, 40, 60))
    with pytest.raises(SourceError, match="samples of 5 channels"):
        cut(slope(), (5, 8, 8))
    with pytest.raises(SourceError, match="pixels between 0 and 255"):
        cut(slope() * 255)


@pytest.mark.parametrize(
    "changes", [{"scale": (0.0, 1.0)}, {"scale": (0.5, 0.2)}, {"scale": (0.5, 2.0)}, {"turn": -1.0}]
)
def test_nonsense_is_refused(changes: dict) -> None:
    with pytest.raises(SourceError, match="give"):
        Patching(**changes)


def test_the_bank_remembers_the_image_not_its_pixels(teacher: nn.Module, tmp_path: Path) -> None:
    def make(image) -> str:
        bank = synthesize(
            teacher,
            shape=(3, 8, 8),
            n=4,
            seed=0,
            method="patches",
            image=image,
            progress=False,
            folder=tmp_path / "bank",
        )
        return bank.provenance.options["image"]

    assert make(slope()).startswith("pixels ")
    assert make(slope()) == make(slope())
    with pytest.raises(SourceError, match="options was"):
        make(slope() / 2)


def test_the_same_file_name_with_another_picture_is_noticed(teacher: nn.Module, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"

    def make() -> str:
        bank = synthesize(
            teacher, shape=(3, 8, 8), n=4, seed=0, method="patches", image=str(photo), progress=False,
            folder=tmp_path / "bank",
        )  # fmt: skip
        return bank.provenance.options["image"]

    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(photo)
    assert make().startswith("photo.png ")
    Image.fromarray(np.ones((40, 40, 3), np.uint8)).save(photo)
    with pytest.raises(SourceError, match="options was"):
        make()


def test_nothing_is_prepared() -> None:
    sampler = patches(NET, spec(3, 8, 8), 0, image=slope())
    assert isinstance(sampler, Sampler)
    assert sampler.prepare(Work()) is sampler
    few = sampler.sample(3, generator(2))
    assert torch.equal(few, sampler.sample(3, generator(2)))
    pixels = spec(3, 8, 8).pixels(few)
    assert 0 <= float(pixels.min()) < float(pixels.max()) <= 1
