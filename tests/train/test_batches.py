"""Batches drawn to learn from: what is right about them, and how the trunk normalizes meanwhile."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

import dynext as dx
from dynext.errors import FitError, SourceError
from dynext.modules.modes import batch_statistics
from dynext.seeding import generator
from dynext.train.batches import BatchSampler, TaughtBatches
from dynext.train.frozen_teacher import lent, recorded


def dynamic(static: dx.graph.StagedNet) -> dx.DynamicNet:
    return dx.DynamicNet(static, [])


def test_labels_are_the_truth_unless_there_is_a_teacher(static, train_samples) -> None:
    net = dynamic(static)
    labelled = TaughtBatches.of(train_samples, net)
    batch = labelled.sampler.draw(16, generator(0))
    with labelled.drawn(static, 16, generator(0)) as taught:
        assert torch.equal(taught.x, batch.x)
        assert torch.equal(taught.target, batch.y)
    guided = TaughtBatches.of(train_samples, net, teacher=static)
    with guided.drawn(static, 16, generator(0)) as taught:
        assert torch.equal(taught.x, batch.x)
        assert_close(taught.target, static(batch.x).softmax(1).detach())
    with pytest.raises(FitError, match="the samples have no labels; give teacher="):
        TaughtBatches.of(train_samples.unlabelled(), net)
    with pytest.raises(SourceError, match="no labels, and this method learns from them; give labelled samples"):
        BatchSampler.of(train_samples.unlabelled(), net)
    assert BatchSampler.of(train_samples.unlabelled(), net, labelled=False).draw(4, generator(0)).y is None


def test_labels_that_are_no_classes_are_refused_where_they_are_learned_from(static, train_samples) -> None:
    wrong, net = replace(train_samples, y=train_samples.y + 4), dynamic(static)
    for sampler in (BatchSampler.of(wrong, net), TaughtBatches.of(wrong, net).sampler):
        with pytest.raises(SourceError, match="the net has 4 classes"):
            sampler.draw(16, generator(0))
    TaughtBatches.of(wrong, net, teacher=static).sampler.draw(16, generator(0))


def test_samples_are_drawn_by_seed_and_never_alone(static, train_samples) -> None:
    sampler = BatchSampler.of(train_samples, dynamic(static), dx.data.augment)
    one, two, other = (sampler.draw(1, generator(seed)) for seed in (3, 3, 4))
    assert len(one.x) == 2
    assert torch.equal(one.x, two.x)
    assert not torch.equal(one.x, other.x)


def test_what_can_only_be_iterated_is_drawn_from_too(static, train_samples) -> None:
    class Stream:
        shape, bn = (1, 8, 8), "running"

        def __len__(self) -> int:
            return 40

        def __iter__(self):
            yield train_samples.take(torch.arange(25))
            yield train_samples.take(torch.arange(25, 40))

    batch = BatchSampler.of(Stream(), dynamic(static)).draw(8, generator(0))
    index = torch.randint(40, (8,), generator=generator(0))
    assert torch.equal(batch.x, train_samples.take(index).x)
    assert torch.equal(batch.y, train_samples.y[index])


def test_a_teacher_lends_its_statistics_to_as_many_passes_as_are_made(static, train_samples) -> None:
    x = train_samples.take(torch.arange(16)).x
    with torch.no_grad(), batch_statistics(static), recorded(static) as moments:
        expected = static(x)
    with torch.no_grad(), lent(static, moments):
        assert_close(static(x), expected)
        assert_close(static(x), expected)
    assert not torch.allclose(static(x), expected)
    with pytest.raises(FitError, match="cannot lend their statistics"), torch.no_grad(), lent(static, moments):
        static.stages[0](x)
    with pytest.raises(FitError, match="cannot lend their statistics"), lent(static, moments):
        pass


def test_samples_of_another_shape_are_refused(static) -> None:
    spec = dx.InputSpec(shape=(1, 9, 9), mean=(0.5,), std=(0.25,))
    large = dx.data.Samples(pixels=torch.zeros(4, 1, 9, 9), y=torch.zeros(4, dtype=torch.int64), spec=spec)
    with pytest.raises(SourceError, match=r"samples of shape \(1, 9, 9\); the model expects \(1, 8, 8\)"):
        TaughtBatches.of(large, dynamic(static))
