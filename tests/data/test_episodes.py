"""Episodes: disjoint, reproducible, labelled from 0; splits by class; rotations; what cannot be drawn from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dynext as dx
from dynext.data.samples import Samples
from dynext.errors import SourceError
from dynext.seeding import generator

SPEC = dx.InputSpec(shape=(1, 2, 2), mean=(0.0,), std=(1.0,))


def numbered(classes: int = 6, each: int = 5) -> Samples:
    """Samples whose first pixel is their number, labelled in turn."""
    n = classes * each
    pixels = torch.zeros(n, 1, 2, 2, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.arange(n)
    return Samples(pixels=pixels, y=torch.arange(n) % classes, spec=SPEC)


def numbers(batch: dx.data.Batch) -> list[int]:
    return (batch.x[:, 0, 0, 0] * 255).round().long().tolist()


@given(st.integers(0, 10_000))
def test_support_and_query_are_disjoint_and_of_the_classes_they_say(index: int) -> None:
    episode = dx.data.Episodes(rows=numbered(), way=3, shot=2, query=3, seed=1)[index]
    known, asked = numbers(episode.support), numbers(episode.query)
    assert len(set(known + asked)) == 3 * 5
    assert episode.way == len(set(episode.classes)) == 3
    for batch, count in ((episode.support, 2), (episode.query, 3)):
        assert batch.y.tolist() == [label for label in range(3) for _ in range(count)]
        assert [episode.classes[y] for y in batch.y.tolist()] == [number % 6 for number in numbers(batch)]


def test_episodes_are_reproducible_by_seed_and_number() -> None:
    episodes = [dx.data.Episodes(rows=numbered(), way=3, shot=1, query=2, seed=seed) for seed in (0, 0, 1)]
    first = [[numbers(e[i].support) for i in range(5)] for e in episodes]
    assert first[0] == first[1] != first[2]
    assert len({tuple(n) for n in first[0]}) > 1
    drawn = episodes[0].draw(generator(3))
    assert numbers(drawn.support) == numbers(episodes[1].draw(generator(3)).support)
    with pytest.raises(IndexError, match="episode -1"):
        episodes[0][-1]


@given(st.integers(0, 1000))
def test_splits_are_disjoint_by_class_and_complete(seed: int) -> None:
    samples = numbered()
    parts = dx.data.split_classes(samples, [3, 2, 1], seed=seed)
    classes_of = [{int(n) % 6 for n in part.pixels[:, 0, 0, 0]} for part in parts]
    assert [len(classes) for classes in classes_of] == [3, 2, 1]
    assert set().union(*classes_of) == set(range(6))
    for part, classes in zip(parts, classes_of, strict=True):
        assert sorted(part.y.unique().tolist()) == list(range(len(classes)))
        assert len(part) == 5 * len(classes)
    again = dx.data.split_classes(samples, [3, 2, 1], seed=seed)
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(parts, again, strict=True))


def test_checkpoints_know_their_episodes_by_these_words() -> None:
    assert dx.data.Episodes(rows=numbered(), way=3, shot=1, query=2).about == "1 + 2 of 3 among 6 classes, 30 rows"
    assert dx.data.SameClasses(rows=numbered(), support=4, query=6).about == "4 + 6 of 30 rows"


def test_rotations_are_new_classes() -> None:
    samples = numbered(classes=3, each=2)
    turned = dx.data.with_rotations(samples)
    assert len(turned) == 4 * len(samples)
    assert turned.y.unique().tolist() == list(range(12))
    corner = [(0, 0), (1, 0), (1, 1), (0, 1)]
    for turn, (i, j) in enumerate(corner):
        part = turned.subset(torch.arange(turn * 6, turn * 6 + 6))
        assert part.pixels[:, 0, i, j].tolist() == list(range(6))
        assert part.y.tolist() == (samples.y + 3 * turn).tolist()


def test_same_classes_keep_their_labels() -> None:
    same = dx.data.SameClasses(rows=numbered(), support=4, query=6)
    episode = same.draw(generator(0))
    assert same.way == 6
    assert len(set(numbers(episode.support) + numbers(episode.query))) == 10
    assert [n % 6 for n in numbers(episode.query)] == episode.query.y.tolist()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: dx.data.Episodes(rows=numbered(1, 5), way=2, shot=1, query=1), "1 class for 2-way episodes"),
        (lambda: dx.data.Episodes(rows=numbered(), way=7), "6 classes for 7-way episodes"),
        (
            lambda: dx.data.Episodes(rows=numbered(6, 1), way=2, shot=1, query=1),
            "class 0 has 1 image; 1 to learn from and 1",
        ),
        (
            lambda: dx.data.Episodes(rows=numbered(), way=2, shot=3, query=3),
            "class 0 has 5 images; 3 to learn from and 3",
        ),
        (lambda: dx.data.Episodes(rows=numbered(), way=1), "way 1, shot 1, query 15"),
        (lambda: dx.data.Episodes(rows=numbered().unlabelled()), "the samples have no labels"),
        (
            lambda: dx.data.Episodes(rows=replace(numbered(), y=numbered().y - 1)),
            "a label of -1; number classes from 0",
        ),
        (
            lambda: dx.data.Episodes(rows=replace(numbered(), y=numbered().y.float())),
            r"labels \[30\] of torch.float32; give",
        ),
        (lambda: dx.data.SameClasses(rows=numbered().subset(torch.arange(0))), "64 samples to learn from .* out of 0"),
        (lambda: dx.data.split_classes(numbered(), [4, 3]), r"splits of \[4, 3\] classes out of 6"),
        (lambda: dx.data.split_classes(numbered(), []), r"splits of \[\] classes"),
        (
            lambda: dx.data.SameClasses(rows=numbered(), support=20, query=20),
            "20 samples to learn from and 20 to be evaluated on",
        ),
        (lambda: dx.data.with_rotations(numbered().unlabelled()), "no labels"),
    ],
)
def test_what_no_episode_can_be_drawn_from(make, told: str) -> None:
    with pytest.raises(SourceError, match=told):
        make()


def test_only_square_images_are_turned() -> None:
    spec = dx.InputSpec(shape=(1, 2, 3), mean=(0.0,), std=(1.0,))
    with pytest.raises(SourceError, match=r"samples of shape \(1, 2, 3\) cannot be turned"):
        dx.data.with_rotations(Samples(pixels=torch.zeros(2, 1, 2, 3), y=torch.arange(2), spec=spec))
