"""Samples as a Source: without labels, in subsets, augmented."""

import pytest
import torch
from pixels import COLOR, GRAY, some_pixels
from torch.testing import assert_close

from dynext.data.datasets import open_rows
from dynext.data.samples import Samples, augment
from dynext.errors import SourceError
from dynext.seeding import generator
from dynext.testing import check_source
from dynext.types import Batch


class Stream:
    """A Source that is no `Samples`: normalized batches with labels."""

    shape, bn = COLOR.shape, "batch"

    def __len__(self) -> int:
        return 6

    def __iter__(self):
        x = COLOR.normalize(torch.from_numpy(some_pixels(6)).permute(0, 3, 1, 2))
        yield from (Batch(x=part, y=torch.zeros(3)) for part in x.split(3))


def test_sources_become_unlabelled_samples() -> None:
    pixels = torch.from_numpy(some_pixels(6)).permute(0, 3, 1, 2)
    samples = open_rows(Stream(), COLOR)
    assert samples.y is None
    assert samples.bn == "batch"
    assert_close(samples.pixels, pixels.float() / 255)
    labelled = Samples(pixels=pixels, y=torch.arange(6), spec=COLOR, batch_size=2)
    assert open_rows(labelled, COLOR).y is None
    assert labelled.y is not None
    with pytest.raises(SourceError, match=r"the model expects \(1, 6, 5\)"):
        open_rows(labelled, GRAY)


def test_samples_are_a_source_and_subsets_keep_labels() -> None:
    samples = Samples(
        pixels=torch.from_numpy(some_pixels()).permute(0, 3, 1, 2), y=torch.arange(7), spec=COLOR, batch_size=3
    )
    check_source(samples)
    assert [len(batch.x) for batch in samples] == [3, 3, 1]
    assert samples.subset(torch.tensor([6, 2])).y.tolist() == [6, 2]
    assert_close(COLOR.pixels(samples.take(torch.arange(7)).x), samples.pixels.float() / 255)


def test_augment_shifts_and_mirrors_by_its_generator() -> None:
    x = torch.rand(64, 1, 8, 8, generator=generator(0)) + 1
    first, again, other = (augment(x, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    candidates = {}
    for top in range(5):
        for left in range(5):
            shifted = torch.nn.functional.pad(x, (2, 2, 2, 2))[..., top : top + 8, left : left + 8]
            candidates[top, left, False], candidates[top, left, True] = shifted, shifted.flip(-1)
    seen = set()
    for i in range(64):
        match = [key for key, value in candidates.items() if torch.equal(value[i], first[i])]
        assert len(match) == 1, f"sample {i} is no shifted or mirrored sample"
        seen.add(match[0][2])
    assert seen == {False, True}
    assert torch.equal(augment(x, generator(0), pad=0, flip=False), x)
