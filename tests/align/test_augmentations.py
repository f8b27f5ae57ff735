"""Views of gray and color images of any size; what is no image has none."""

import pytest
import torch

from dynext.align.augmentations import Augmentations
from dynext.align.batches import AugmentedSource
from dynext.data.samples import Samples
from dynext.errors import FitError
from dynext.seeding import generator
from dynext.types import InputSpec


def images(channels: int, height: int, width: int, n: int = 3) -> tuple[torch.Tensor, InputSpec]:
    spec = InputSpec(shape=(channels, height, width), mean=(0.4,) * channels, std=(0.3,) * channels)
    return spec.normalize(torch.rand(n, channels, height, width, generator=generator(0))), spec


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 17, 24), (5, 9, 9)])
def test_a_view_has_the_images_shape_and_pixels(shape: tuple[int, int, int]) -> None:
    x, spec = images(*shape)
    state = torch.get_rng_state()
    seen = Augmentations(blur=1.0)(x, generator(1), spec)
    assert seen.shape == x.shape
    assert not torch.equal(seen, x)
    low, high = spec.normalize(torch.zeros(1, *shape)).min(), spec.normalize(torch.ones(1, *shape)).max()
    assert low - 1e-3 <= seen.min()
    assert seen.max() <= high + 1e-3
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(seen, Augmentations(blur=1.0)(x, generator(1), spec))
    assert not torch.equal(seen, Augmentations(blur=1.0)(x, generator(2), spec))


def test_each_sample_has_a_draw_of_its_own() -> None:
    x, spec = images(1, 28, 28, n=1)
    seen = Augmentations()(x.repeat(4, 1, 1, 1), generator(0), spec)
    assert len({tuple(image.flatten().tolist()) for image in seen}) == 4


def test_without_knowing_pixels_only_places_change() -> None:
    x, spec = images(3, 12, 12)
    still = Augmentations(area=1.0, mirror=0.0)
    crop = still(x, generator(0))
    assert crop.shape == x.shape
    x = torch.full_like(x, 0.7)
    torch.testing.assert_close(Augmentations()(x, generator(0)), x)
    assert not torch.allclose(Augmentations()(x, generator(0), spec), x)


def test_an_augmented_source_shows_the_same_at_every_iteration() -> None:
    x, spec = images(1, 12, 12, n=5)
    samples = Samples(pixels=spec.pixels(x), y=torch.arange(5), spec=spec, batch_size=2)
    viewed = AugmentedSource(source=samples, augmentations=Augmentations(), seed=3)
    first, again = ([batch.x for batch in viewed] for _ in range(2))
    assert [len(x) for x in first] == [2, 2, 1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.cat([batch.y for batch in viewed]).tolist() == [0, 1, 2, 3, 4]
    assert (viewed.shape, viewed.bn, len(viewed)) == (samples.shape, samples.bn, 5)
    other_seed = AugmentedSource(source=samples, augmentations=Augmentations(), seed=4)
    other = torch.cat([batch.x for batch in other_seed])
    assert not torch.equal(torch.cat(first), other)


def test_what_has_no_views_is_refused() -> None:
    with pytest.raises(FitError, match=r"samples of shape \(7,\) have no views"):
        Augmentations()(torch.zeros(2, 7), generator(0))
    with pytest.raises(FitError, match="count=2, copies=1"):
        Augmentations(copies=1)
    with pytest.raises(FitError, match="area=0"):
        Augmentations(area=0.0)
