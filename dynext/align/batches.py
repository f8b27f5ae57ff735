"""What exits are given at a step: samples in one view or two, from features cached once or through a trunk in training.

Shapes: b samples in a batch, n samples, k classes, d the size of an embedding. There are e exits, numbered from 0, the
last is the full net.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from dynext.align.augmentations import Augmentations
from dynext.data.indexing import by_index
from dynext.errors import SourceError
from dynext.modules.layer_outputs import given_to
from dynext.net.dynamic_net import DynamicNet
from dynext.net.embeddings import EmbeddedBatch, embed_batch
from dynext.net.features import cache_features
from dynext.net.last_layer import last_linear
from dynext.seeding import generator
from dynext.train.frozen_teacher import Guide
from dynext.types import Batch, BatchNormMode, InputSpec, Source


class View(NamedTuple):
    """One view of a batch: what the exits make of it, and the static net's logits ``[b k]``."""

    embedded: EmbeddedBatch
    target_bk: Tensor


class AlignmentBatch(NamedTuple):
    """The views of a batch, and its labels ``[b]`` where these are learned from."""

    views: list[View]
    y_b: Tensor | None


class AlignmentSampler(Protocol):
    """Draws batches for a net that is being trained."""

    @property
    def num_samples(self) -> int:
        """How many there are to draw from."""
        ...

    def draw(self, trained: DynamicNet, count: int, draw: Generator) -> AlignmentBatch: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class AugmentedSource:
    """A source in one random view, the same at every iteration."""

    source: Source
    augmentations: Augmentations
    seed: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def bn(self) -> BatchNormMode:
        return self.source.bn

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Batch]:
        draw, spec = generator(self.seed), spec_of(self.source)
        for batch in self.source:
            yield replace(batch, x=self.augmentations(batch.x, draw, spec))


def spec_of(source: Source) -> InputSpec | None:
    """How a source's pixels are normalized, where it knows."""
    return getattr(source, "spec", None)


def labels_of(source: Source) -> Tensor:
    """The labels ``[n]`` of a source.

    Raises:
        SourceError: it has none.
    """
    labels = [batch.y for batch in source if batch.y is not None]
    if sum(map(len, labels)) != len(source):
        raise _without_labels()
    return torch.cat(labels)


def _without_labels() -> SourceError:
    return SourceError("the samples have no labels to learn from; give labelled samples, or learn='teacher'")


def checked_labels(y: Tensor, num_classes: int) -> Tensor:
    """The labels ``[b]``, if they are classes of the net: -1 for "unlabelled" would count as the last one.

    Raises:
        SourceError: one is none.
    """
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < num_classes:
        raise SourceError(
            f"labels from {int(y.min())} to {int(y.max())} for a net of {num_classes} classes from 0; "
            f"leave the other samples out, or give learn='teacher'"
        )
    return y


class CachedFeatureSampler:
    """For a frozen trunk, which is run once over the samples, in each of some views: steps then cost little more than
    the heads.
    """

    def __init__(
        self,
        net: DynamicNet,
        source: Source,
        augmentations: Augmentations | None,
        *,
        labelled: bool,
        seed: int,
        progress: bool,
    ) -> None:
        self.augmentations, self.num_samples = augmentations, len(source)
        self.y_n = checked_labels(labels_of(source), net.num_classes) if labelled else None
        sources: list[Source] = [source]
        if augmentations is not None:
            copies = range(augmentations.copies)
            sources = [AugmentedSource(source=source, augmentations=augmentations, seed=seed + v) for v in copies]
        with given_to(last_linear(net)) as given:
            self.features_v = [cache_features(net, None, view, progress=progress) for view in sources]
        self.final_nd = torch.cat([f.half().cpu() for f in given])

    def draw(self, trained: DynamicNet, count: int, draw: Generator) -> AlignmentBatch:
        index = torch.randint(self.num_samples, (count,), generator=draw)
        num_views = 1 if self.augmentations is None else self.augmentations.count
        chosen = torch.randperm(len(self.features_v), generator=draw)[:num_views]
        views = [self._view(trained, v, index) for v in chosen.tolist()]
        y_b = None if self.y_n is None else self.y_n[index].to(views[0].target_bk.device)
        return AlignmentBatch(views, y_b)

    def _view(self, trained: DynamicNet, v: int, index: Tensor) -> View:
        like, features = next(trained.parameters()), self.features_v[v]
        reduced_e = [reduced[index].to(like) for reduced in features.reduced_e]
        early = [exit.embedder(reduced) for exit, reduced in zip(trained.exits, reduced_e, strict=True)]
        logits_e = [exit.classifier(f) for exit, f in zip(trained.exits, early, strict=True)]
        final_bd = self.final_nd[v * self.num_samples + index].to(like)
        target_bk = features.logits_nk[index].to(like)
        return View(EmbeddedBatch([*early, final_bd], [*logits_e, target_bk]), target_bk)


class TrainedTrunkSampler:
    """Samples go through the trunk as it is being trained, beside the static net as it was."""

    def __init__(
        self, guide: Guide, source: Source, train_n: Tensor, augmentations: Augmentations | None, *, labelled: bool
    ) -> None:
        self.guide, self.train_n, self.augmentations, self.labelled = guide, train_n, augmentations, labelled
        self.take, self.spec = by_index(source), spec_of(source)
        if labelled and self.take(train_n[:1]).y is None:
            raise _without_labels()

    @property
    def num_samples(self) -> int:
        return len(self.train_n)

    def draw(self, trained: DynamicNet, count: int, draw: Generator) -> AlignmentBatch:
        batch = self.take(self.train_n[torch.randint(len(self.train_n), (count,), generator=draw)])
        xs = [batch.x]
        if self.augmentations is not None:
            xs = [self.augmentations(batch.x, draw, self.spec) for _ in range(self.augmentations.count)]
        like = next(trained.parameters())
        views = []
        for x in xs:
            with self.guide.beside(trained.staged, x.to(like)) as wanted:
                views.append(View(embed_batch(trained, x.to(like)), wanted.logits))
        y_b = None
        if self.labelled and batch.y is not None:
            y_b = checked_labels(batch.y, trained.num_classes).to(like.device)
        return AlignmentBatch(views, y_b)
