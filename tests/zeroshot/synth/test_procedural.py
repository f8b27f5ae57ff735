"""Procedural pictures are pixels, follow their style, and are made of what they say."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from dynext.errors import SourceError
from dynext.seeding import generator
from dynext.zeroshot.synth.procedural import _noise, gaussian, leaves, objects, paint, pink
from dynext.zeroshot.synth.styles import LEAVES, OBJECTS, PRESETS, Style, random_style, varied


@pytest.mark.parametrize("style", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 40, 56)])
def test_pictures_are_pixels_and_differ(style: Style, shape: tuple[int, ...]) -> None:
    x = paint(24, shape, generator(0), style)
    assert x.shape == (24, *shape)
    assert 0 <= float(x.min()) < float(x.max()) <= 1
    assert float(x.std((1, 2, 3)).min()) > 0.01
    assert len({row.numpy().tobytes() for row in x}) == 24
    assert torch.equal(x, paint(24, shape, generator(0), style))


def test_noise_falls_as_the_exponent_says() -> None:
    field = _noise(256, 1, (64, 64), generator(0), exponent=1.5)[:, 0]
    assert_close(field.mean((1, 2)), torch.zeros(256), atol=1e-4, rtol=0)
    assert_close(field.std((1, 2)), torch.ones(256), atol=1e-3, rtol=0)
    amplitude = torch.fft.rfft2(field).abs().square().mean(0).sqrt()
    slope = (amplitude[0, 16] / amplitude[0, 4]).log() / torch.tensor(4.0).log()
    assert_close(slope.item(), -1.5, atol=0.15, rtol=0)


def test_saturation_and_contrast_do_what_they_say() -> None:
    def spread(**changes: float) -> tuple[float, float]:
        x = pink(256, (3, 16, 16), generator(0), replace(LEAVES, **changes))
        return float(x.std()), float(x.std(1).mean())

    assert spread(saturation=0.0)[1] < 1e-6
    assert spread(saturation=0.6)[1] > 2 * spread(saturation=0.15)[1]
    assert spread(contrast=0.2)[0] > 1.5 * spread(contrast=0.1)[0]


def test_leaves_cover_the_ground_and_each_other() -> None:
    plain = replace(LEAVES, texture=0.0, shading=0.0, radius=(0.5, 1.0), saturation=0.0)
    x = leaves(64, (1, 32, 32), generator(0), plain)
    flat = (x.diff(dim=-1).abs() < 1e-6).float().mean()
    assert float(flat) > 0.6
    assert (
        float((leaves(64, (1, 32, 32), generator(0), replace(plain, count=1)).diff(dim=-1) == 0).float().mean()) < 0.4
    )


@pytest.mark.parametrize(("ground", "edge"), [("dark", 0.0), ("light", 1.0)])
def test_objects_stand_in_the_middle_of_an_even_ground(ground: str, edge: float) -> None:
    x = objects(128, (1, 28, 28), generator(0), replace(OBJECTS, ground=ground, radius=(0.3, 0.6)))
    corners = x[..., [0, 0, -1, -1], [0, -1, 0, -1]]
    assert float((corners - edge).abs().mean()) < 0.1
    assert float((x[..., 10:18, 10:18] - edge).abs().mean()) > 0.3


def test_mirrored_pictures_are_symmetric_in_their_shapes() -> None:
    even = replace(OBJECTS, texture=0.0)
    x = objects(32, (1, 28, 28), generator(0), replace(even, mirror=1.0))
    assert_close(x, x.flip(-1))
    y = objects(32, (1, 28, 28), generator(0), replace(even, mirror=0.0))
    assert float((y - y.flip(-1)).abs().amax((1, 2, 3)).min()) > 0.01


def test_gaussian_is_standard_normal() -> None:
    x = gaussian(64, (3, 16, 16), generator(0))
    assert_close(torch.stack([x.mean(), x.std()]), torch.tensor([0.0, 1.0]), atol=0.02, rtol=0)


def test_painting_borrows_no_global_randomness() -> None:
    state = torch.get_rng_state()
    paint(4, (3, 16, 16), generator(0), OBJECTS)
    random_style(generator(0))
    assert torch.equal(state, torch.get_rng_state())


def test_random_and_varied_looks_can_be_painted() -> None:
    draw = generator(0)
    styles = [random_style(draw) for _ in range(20)]
    styles += [varied(style, draw) for style in styles]
    assert {style.layout for style in styles} == {"leaves", "objects"}
    assert {style.ground for style in styles} == {"texture", "dark", "light"}
    assert len(set(styles)) == 40
    assert all(torch.isfinite(paint(2, (3, 12, 12), draw, style)).all() for style in styles)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"radius": (0.5, 0.2)}, r"radius \(0.5, 0.2\); give \(smallest, largest\)"),
        ({"radius": (0.0, 0.2)}, "both positive"),
        ({"aspect": (0.9, 0.2)}, r"aspect \(0.9, 0.2\)"),
        ({"count": 0}, "count 0; a style needs"),
        ({"layout": "salad"}, "layout 'salad' on ground 'texture'; layouts are leaves, objects"),
        ({"ground": "green"}, "grounds texture, dark, light"),
    ],
)
def test_looks_refuse_nonsense(changes: dict, told: str) -> None:
    with pytest.raises(SourceError, match=told):
        Style(**changes)
