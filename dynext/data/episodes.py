"""Few-shot episodes: N classes, K images of each to learn from, Q of each to be evaluated on; and splits by class.

Shapes: n samples, w classes of an episode (its way).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Generator, Tensor

from dynext.brief import short_repr
from dynext.data.samples import Samples
from dynext.errors import SourceError
from dynext.seeding import generator
from dynext.types import Batch


@dataclass(frozen=True, kw_only=True, eq=False)
class Episode:
    """Samples to learn from and samples to be evaluated on, labels ``0 .. way - 1``."""

    __repr__ = short_repr

    support: Batch
    query: Batch
    classes: tuple[int, ...]
    """Which class of the data set each label stands for."""

    @property
    def way(self) -> int:
        return len(self.classes)


@dataclass(frozen=True, kw_only=True, eq=False)
class Episodes:
    """N-way K-shot episodes from labelled samples; the i-th is the same one every time.

    Raises:
        SourceError: no labels, fewer classes than ``way``, or a class with fewer than ``shot + query`` images.
    """

    rows: Samples
    way: int = 5
    shot: int = 1
    query: int = 15
    """Of each class."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.way < 2 or self.shot < 1 or self.query < 1:
            raise SourceError(f"way {self.way}, shot {self.shot}, query {self.query}; give 2, 1 and 1 or more")
        sizes = class_sizes(self.rows)
        if len(sizes) < self.way:
            raise SourceError(
                f"{len(sizes)} {'class' if len(sizes) == 1 else 'classes'} for {self.way}-way episodes; "
                f"give samples of {self.way} or more classes, or a smaller way"
            )
        label, least = min(sizes.items(), key=lambda item: item[1])
        if least < self.shot + self.query:
            raise SourceError(
                f"class {label} has {least} {'image' if least == 1 else 'images'}; {self.shot} to learn from and "
                f"{self.query} to be evaluated on need {self.shot + self.query} of each class"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    @property
    def about(self) -> str:
        """What tells these episodes from others; part of a checkpoint's identity, so that its words stay."""
        return f"{self.shot} + {self.query} of {self.way} among {len(self.members)} classes, {len(self.rows)} rows"

    @cached_property
    def members(self) -> dict[int, Tensor]:
        """Numbers of the samples of each class."""
        return members_of(self.rows)

    def draw(self, draw: Generator) -> Episode:
        """The episode that a generator's state gives."""
        members, labels = self.members, list(self.members)
        picked = [labels[i] for i in torch.randperm(len(labels), generator=draw)[: self.way].tolist()]
        each = self.shot + self.query
        taken = [members[c][torch.randperm(len(members[c]), generator=draw)[:each]] for c in picked]
        return Episode(
            support=self._batch([index[: self.shot] for index in taken]),
            query=self._batch([index[self.shot :] for index in taken]),
            classes=tuple(picked),
        )

    def __getitem__(self, index: int) -> Episode:
        """The ``index``-th episode, whatever was drawn before."""
        if index < 0:
            raise IndexError(f"episode {index}; episodes count from 0 and have no end")
        return self.draw(generator(self.seed * 1_000_003 + index))

    def _batch(self, index_w: Sequence[Tensor]) -> Batch:
        x = self.rows.take(torch.cat(list(index_w))).x
        y = torch.cat([torch.full((len(index),), label) for label, index in enumerate(index_w)])
        return Batch(x=x, y=y)


@dataclass(frozen=True, kw_only=True, eq=False)
class SameClasses:
    """Episodes over one fixed set of classes: other samples each time, the same labels. For learning across exits only.

    Raises:
        SourceError: no labels, or fewer samples than an episode takes.
    """

    rows: Samples
    support: int = 64
    query: int = 64

    def __post_init__(self) -> None:
        labels_of(self.rows)
        if min(self.support, self.query) < 1 or self.support + self.query > len(self.rows):
            raise SourceError(
                f"{self.support} samples to learn from and {self.query} to be evaluated on, out of {len(self.rows)}; "
                f"give 1 or more of each, and no more than there are"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    @property
    def way(self) -> int:
        return max(class_sizes(self.rows)) + 1

    @property
    def about(self) -> str:
        """What tells these episodes from others; part of a checkpoint's identity, so that its words stay."""
        return f"{self.support} + {self.query} of {len(self.rows)} rows"

    def draw(self, draw: Generator) -> Episode:
        index = torch.randperm(len(self.rows), generator=draw)[: self.support + self.query]
        support, query = self.rows.take(index[: self.support]), self.rows.take(index[self.support :])
        return Episode(support=support, query=query, classes=tuple(range(self.way)))


def labels_of(samples: Samples) -> Tensor:
    """The labels ``[n]``.

    Raises:
        SourceError: there are none, or they are no numbers of classes from 0 on.
    """
    if samples.y is None:
        raise SourceError("the samples have no labels, and episodes are drawn by class; give labelled samples")
    if samples.y.ndim != 1 or samples.y.is_floating_point():
        raise SourceError(
            f"labels {list(samples.y.shape)} of {samples.y.dtype}; give each sample the number of its class, counted "
            f"from 0"
        )
    if len(samples) and int(samples.y.min()) < 0:
        raise SourceError(f"a label of {int(samples.y.min())}; number classes from 0, and leave unlabelled samples out")
    return samples.y


def members_of(samples: Samples) -> dict[int, Tensor]:
    """Numbers of the samples of each class that has any."""
    y = labels_of(samples)
    classes, counts = y.unique(return_counts=True)
    parts = y.argsort(stable=True).split(counts.tolist())
    return dict(zip(classes.tolist(), parts, strict=True))


def class_sizes(samples: Samples) -> dict[int, int]:
    """How many samples each class has, of those that have any."""
    classes, counts = labels_of(samples).unique(return_counts=True)
    return dict(zip(classes.tolist(), counts.tolist(), strict=True))


def split_classes(rows: Samples, counts: Sequence[int], *, seed: int = 0) -> list[Samples]:
    """Samples of disjoint sets of classes, ``counts`` classes each, drawn by ``seed``; labels count from 0 in each.

    Raises:
        SourceError: no labels, or more classes asked for than there are.
    """
    members = members_of(rows)
    if not counts or min(counts) < 1 or sum(counts) > len(members):
        raise SourceError(
            f"splits of {list(counts)} classes out of {len(members)}; give 1 or more each, no more in all"
        )
    labels = list(members)
    order = [labels[i] for i in torch.randperm(len(labels), generator=generator(seed)).tolist()]
    parts, start = [], 0
    for count in counts:
        picked = sorted(order[start : start + count])
        start += count
        index = torch.cat([members[c] for c in picked])
        y = torch.cat([torch.full((len(members[c]),), label) for label, c in enumerate(picked)])
        parts.append(replace(rows.subset(index), y=y))
    return parts


def with_rotations(rows: Samples) -> Samples:
    """``rows`` and each of them turned by 90, 180 and 270 degrees; a class turned is a class of its own.

    Split by class first and turn afterwards: otherwise a class and its turned copies end up on different sides.

    Raises:
        SourceError: no labels, or samples that are not square images.

    Source: Santoro et al., ICML 2016, arXiv:1605.06065, for Omniglot.
    """
    y = labels_of(rows)
    if len(rows.shape) != 3 or rows.shape[1] != rows.shape[2]:
        raise SourceError(f"samples of shape {tuple(rows.shape)} cannot be turned; give square images [c h h]")
    classes = int(y.max()) + 1
    return replace(
        rows,
        pixels=torch.cat([rows.pixels.rot90(turn, (2, 3)) for turn in range(4)]),
        y=torch.cat([y + turn * classes for turn in range(4)]),
    )
