"""Samples to learn from, and what is right about them: their labels, or what a frozen teacher says.

Shapes: b samples, k classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from dynext.data.indexing import by_index, check_labels, check_samples
from dynext.data.samples import augment
from dynext.errors import FitError
from dynext.graph import StagedNet
from dynext.train.frozen_teacher import BesideMode, Guide
from dynext.types import Batch, Source


@dataclass(frozen=True, kw_only=True, eq=False)
class TaughtBatch:
    """Samples ``x [b ...]`` and their truth: labels ``[b]`` or the teacher's probabilities ``[b k]``."""

    x: Tensor
    target: Tensor


class TaughtBatches:
    """Draws lessons from a source, and has the trunk see them as it should.

    With labels the trunk's BatchNorms are left as they are. With a teacher they normalize as
    `dynext.train.frozen_teacher` says.
    """

    def __init__(
        self, source: Source, trunk: StagedNet, teacher: nn.Module | None, bn: BesideMode, *, augmented: bool
    ) -> None:
        check_samples(source, trunk.input_shape)
        self.num_rows, self.take, self.augmented = len(source), by_index(source), augmented
        self.num_classes = trunk.num_classes
        self.guide = None if teacher is None else Guide.of(teacher, bn)
        if self.guide is None and self.take(torch.tensor([0])).y is None:
            raise FitError("the samples have no labels; give teacher= to say what is right about them")
        if augmented and len(source.shape) != 3:
            raise FitError(f"augmented=True shifts and mirrors images, these samples are {tuple(source.shape)}")

    def draw(self, count: int, draw: Generator) -> Batch:
        """``count`` samples, at least two, drawn with replacement."""
        batch = self.take(torch.randint(self.num_rows, (max(count, 2),), generator=draw))
        return Batch(x=augment(batch.x, draw), y=batch.y) if self.augmented else batch

    @contextmanager
    def beside(self, trunk: nn.Module, batch: Batch, like: Tensor) -> Iterator[TaughtBatch]:
        """The lesson, on the device and of the type of ``like``; inside, ``trunk`` normalizes as it should."""
        x = batch.x.to(like)
        if self.guide is None:
            assert batch.y is not None  # noqa: S101  looked at when the lessons were made
            check_labels(batch.y, self.num_classes)
            yield TaughtBatch(x=x, target=batch.y.to(like.device))
            return
        with self.guide.beside(trunk, x) as answer:
            yield TaughtBatch(x=x, target=answer.logits.softmax(-1))
