"""Batches to learn from, drawn at random, and what is right about them: labels, or what a frozen teacher says.

Shapes: b samples in a batch, k classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn

from dynext.data.content import Content
from dynext.data.indexing import by_index, check_labels, check_samples
from dynext.errors import FitError, SourceError
from dynext.net.dynamic_net import DynamicNet
from dynext.train.frozen_teacher import BesideMode, Guide
from dynext.types import Batch, Source

Augment = Callable[[Tensor, Generator], Tensor]
"""Samples ``[b ...]`` and a generator to samples, such as `dynext.data.augment`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchSampler:
    """Draws batches from a source for a net to learn from, and checks that it can."""

    take: Callable[[Tensor], Batch]
    """Samples by their numbers ``[b]``."""
    num_samples: int
    num_classes: int | None
    """Of the labels, which are checked at each draw; ``None`` where labels play no part."""
    augment: Augment | None
    source: Source

    @classmethod
    def of(
        cls, source: Source, net: DynamicNet, augment: Augment | None = None, *, labelled: bool = True
    ) -> BatchSampler:
        """A sampler of ``source`` for ``net``, with labels or without.

        Raises:
            SourceError: no sample, no labels, or samples of another shape than the model expects.
        """
        check_samples(source, net.staged.input_shape)
        sampler = cls(
            take=by_index(source),
            num_samples=len(source),
            num_classes=net.num_classes if labelled else None,
            augment=augment,
            source=source,
        )
        if labelled and not sampler.has_labels:
            raise SourceError("the samples have no labels, and this method learns from them; give labelled samples")
        return sampler

    @property
    def content(self) -> Content:
        """What a net has learned from that was trained on these."""
        return Content.of(self.source)

    @property
    def has_labels(self) -> bool:
        return self.take(torch.zeros(1, dtype=torch.int64)).y is not None

    def draw(self, count: int, draw: Generator) -> Batch:
        """``count`` samples (at least two, for BatchNorm), drawn with replacement, then augmented.

        Raises:
            SourceError: labels that are no classes of the net.
        """
        batch = self.take(torch.randint(self.num_samples, (max(count, 2),), generator=draw))
        if batch.y is not None and self.num_classes is not None:
            check_labels(batch.y, self.num_classes)
        return batch if self.augment is None else replace(batch, x=self.augment(batch.x, draw))


@dataclass(frozen=True, kw_only=True, eq=False)
class TaughtBatch:
    """Samples ``x [b ...]`` and what is right: labels ``[b]`` or the teacher's probabilities ``[b k]``."""

    x: Tensor
    target: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class TaughtBatches:
    """Draws batches, says what is right about them, and has the trunk see them as it should.

    With labels the trunk's BatchNorms are left as they are. With a teacher they normalize as
    `dynext.train.frozen_teacher` says.
    """

    sampler: BatchSampler
    guide: Guide | None
    bn: BesideMode

    @classmethod
    def of(
        cls,
        source: Source,
        net: DynamicNet,
        *,
        teacher: nn.Module | None = None,
        augment: Augment | None = None,
        bn: BesideMode = "frozen",
    ) -> TaughtBatches:
        """Batches of ``source`` for ``net``, with the ``teacher``'s probabilities as truth, else with their labels.

        Raises:
            FitError: neither labels nor a teacher.
            SourceError: no sample, or samples of another shape than the model expects.
        """
        sampler = BatchSampler.of(source, net, augment, labelled=False)
        guide = None if teacher is None else Guide.of(teacher, bn)
        if guide is None:
            if not sampler.has_labels:
                raise FitError("the samples have no labels; give teacher= to say what is right about them")
            sampler = replace(sampler, num_classes=net.num_classes)
        return cls(sampler=sampler, guide=guide, bn=bn)

    @property
    def augmented(self) -> bool:
        return self.sampler.augment is not None

    @contextmanager
    def drawn(self, trunk: nn.Module, count: int, draw: Generator) -> Iterator[TaughtBatch]:
        """``count`` samples where ``trunk`` is and of its type; inside, ``trunk`` normalizes as it should."""
        batch, like = self.sampler.draw(count, draw), next(trunk.parameters())
        x = batch.x.to(like)
        if self.guide is None:
            assert batch.y is not None  # noqa: S101  `of` has checked
            yield TaughtBatch(x=x, target=batch.y.to(like.device))
            return
        with self.guide.beside(trunk, x) as answer:
            yield TaughtBatch(x=x, target=answer.logits.softmax(-1))
