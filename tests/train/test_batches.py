"""What is right about samples: labels or a teacher's probabilities; and how the trunk normalizes meanwhile."""

import pytest
import torch
from torch.testing import assert_close

import dynext as dx
from dynext.errors import FitError, SourceError
from dynext.modules.modes import batch_statistics
from dynext.seeding import generator
from dynext.train.batches import TaughtBatches
from dynext.train.frozen_teacher import lent, recorded


def test_labels_are_the_truth_unless_there_is_a_teacher(static, train_rows) -> None:
    like = next(static.parameters())
    lessons = TaughtBatches(train_rows, static, None, "frozen", augmented=False)
    batch = lessons.draw(16, generator(0))
    with lessons.beside(static, batch, like) as lesson:
        assert torch.equal(lesson.target, batch.y)
    taught = TaughtBatches(train_rows, static, static, "frozen", augmented=False)
    with taught.beside(static, batch, like) as lesson:
        assert_close(lesson.target, static(batch.x).softmax(1).detach())
    with pytest.raises(FitError, match="the samples have no labels; give teacher="):
        TaughtBatches(train_rows.unlabelled(), static, None, "frozen", augmented=False)


def test_rows_are_drawn_by_seed_and_never_alone(static, train_rows) -> None:
    lessons = TaughtBatches(train_rows, static, None, "frozen", augmented=True)
    one, two, other = (lessons.draw(1, generator(seed)) for seed in (3, 3, 4))
    assert len(one.x) == 2
    assert torch.equal(one.x, two.x)
    assert not torch.equal(one.x, other.x)


def test_what_can_only_be_iterated_is_drawn_from_too(static, train_rows) -> None:
    class Stream:
        shape, bn = (1, 8, 8), "running"

        def __len__(self) -> int:
            return 40

        def __iter__(self):
            yield train_rows.take(torch.arange(25))
            yield train_rows.take(torch.arange(25, 40))

    batch = TaughtBatches(Stream(), static, None, "frozen", augmented=False).draw(8, generator(0))
    index = torch.randint(40, (8,), generator=generator(0))
    assert torch.equal(batch.x, train_rows.take(index).x)
    assert torch.equal(batch.y, train_rows.y[index])


def test_a_teacher_lends_its_statistics_to_as_many_passes_as_are_made(static, train_rows) -> None:
    x = train_rows.take(torch.arange(16)).x
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


def test_rows_of_another_shape_are_refused(static) -> None:
    spec = dx.InputSpec(shape=(1, 9, 9), mean=(0.5,), std=(0.25,))
    rows = dx.data.Samples(pixels=torch.zeros(4, 1, 9, 9), y=torch.zeros(4, dtype=torch.int64), spec=spec)
    with pytest.raises(SourceError, match=r"samples of shape \(1, 9, 9\); the model expects \(1, 8, 8\)"):
        TaughtBatches(rows, static, None, "frozen", augmented=False)
