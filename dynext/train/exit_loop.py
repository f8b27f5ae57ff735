"""What the methods share: labelled samples by number, a copy of the net to train, the whole of it or its heads alone.

A method is a loss. `train_whole` hands it what a module makes of the samples, `train_heads` what a module makes of the
features that the frozen trunk has made of them once.

Shapes: b samples in a batch, n samples, k classes. There are e exits, numbered from 0, the last is the full net.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Generator, Tensor, nn

from dynext.data.indexing import by_index, check_labels, check_samples
from dynext.errors import FitError, SourceError
from dynext.fitting import FitConfig, fit
from dynext.modules.modes import take_flags
from dynext.net.cascade import Link, links_of
from dynext.net.dynamic_net import DynamicNet
from dynext.net.equilibrium import logits_in_equilibrium
from dynext.net.features import cache_features
from dynext.types import Batch, Source

Augment = Callable[[Tensor, Generator], Tensor]
"""Samples ``[b ...]`` and a generator to samples, such as `dynext.data.augment`."""

Seen = TypeVar("Seen")
"""What a method's module makes of a batch."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchSampler:
    """A source by number, and how its samples are changed when they are drawn."""

    take: Callable[[Tensor], Batch]
    count: int
    num_classes: int | None
    """Of the labels; ``None`` where they play no part."""
    augment: Augment | None

    @classmethod
    def of(cls, source: Source, net: DynamicNet, augment: Augment | None, *, labelled: bool = True) -> BatchSampler:
        """Raises SourceError: no sample, no labels, or samples of another shape than the model expects."""
        check_shape(source, net)
        take = by_index(source)
        if labelled and take(torch.zeros(1, dtype=torch.int64)).y is None:
            raise SourceError("the samples have no labels, and this method learns from them; give labelled samples")
        return cls(take=take, count=len(source), num_classes=net.num_classes if labelled else None, augment=augment)

    def draw(self, count: int, draw: Generator) -> Batch:
        """``count`` samples (two at least, for BatchNorm) with replacement.

        Raises:
            SourceError: labels that are no classes of the net.
        """
        batch = self.take(torch.randint(self.count, (max(count, 2),), generator=draw))
        if batch.y is not None and self.num_classes is not None:
            check_labels(batch.y, self.num_classes)
        return batch if self.augment is None else replace(batch, x=self.augment(batch.x, draw))


def check_shape(source: Source, net: DynamicNet) -> None:
    """Refuse samples that the net cannot take, and a net that has nothing to train beside itself."""
    if not len(net.exits):
        raise FitError("the net has no early exit to train; attach some (dx.attach)")
    check_samples(source, net.staged.input_shape)


def check_plain(net: DynamicNet) -> None:
    """Refuse a net whose exits build on each other already."""
    if net.cascade is not None:
        raise FitError(
            f"the net is a cascade already (rule {net.cascade['rule']!r}); give the one with plain exits that it was "
            f"made of, or train it jointly"
        )


def check_joinable(net: DynamicNet) -> None:
    """Refuse a net of which no cascade can be made, before it is trained for one."""
    check_plain(net)
    if net.gates is not None:
        raise FitError(
            "the method ends in a cascade, whose stages are not skipped, and this net has gates; give it without them"
        )


class EveryExit(nn.Module):
    """``x [b ...]`` to every exit's logits, e tensors ``[b k]``, their gradients in balance or as they are."""

    def __init__(self, net: DynamicNet, *, balance: bool = False) -> None:
        super().__init__()
        self.net, self.balance = net, balance

    def forward(self, x: Tensor) -> list[Tensor]:
        return logits_in_equilibrium(self.net, x, balance=self.balance)[0]


def train_whole(
    net: DynamicNet,
    rows: BatchSampler,
    config: FitConfig,
    module: Callable[[DynamicNet], nn.Module],
    loss: Callable[[Seen, Tensor, float], Tensor],
    *,
    batch_size: int,
) -> DynamicNet:
    """A copy of ``net`` trained as a whole: ``loss(module(x), y [b], share of the steps done)``."""
    student = copy.deepcopy(net).requires_grad_(True)

    def step(trained: nn.Module, draw: Generator, done: float) -> Tensor:
        like = next(trained.parameters())  # where the training runs, which need not be where the net is
        batch = rows.draw(batch_size, draw)
        assert batch.y is not None  # noqa: S101  `BatchSampler.of` has looked
        return loss(trained(batch.x.to(like)), batch.y.to(like.device), done)

    fit(module(student).train(), step, drawing(config, batch_size, rows.count))
    return handed_back(student, net)


class Heard(NamedTuple):
    """What heads say of a batch, beside what the frozen net does."""

    own_e: list[Tensor]
    """Each early head's own logits ``[b k]``."""
    answer_e: list[Tensor]
    """Each early exit's answer ``[b k]``, the same where exits do not build on each other."""
    full_bk: Tensor
    """The full net's logits."""


class Heads(nn.Module):
    """The heads' trainable parts alone, so that `fit` sees no trunk: reduced taps to own logits and answers."""

    def __init__(self, net: DynamicNet) -> None:
        super().__init__()
        self.links = nn.ModuleList(links_of(net))

    def forward(self, reduced_e: list[Tensor], full_bk: Tensor) -> Heard:
        own_e: list[Tensor] = []
        answer_e: list[Tensor] = []
        for link, reduced in zip(self.links, reduced_e, strict=True):
            assert isinstance(link, Link)  # noqa: S101
            own_e.append(link.own(reduced, own_e))
            answer_e.append(link.answer(own_e))
        return Heard(own_e=own_e, answer_e=answer_e, full_bk=full_bk)


def train_heads(
    net: DynamicNet,
    student: DynamicNet,
    source: Source,
    config: FitConfig,
    loss: Callable[[Seen, Tensor, float], Tensor],
    *,
    batch_size: int,
    module: Callable[[DynamicNet], nn.Module] = Heads,
    self_taught: bool = False,
) -> DynamicNet:
    """``student``, a copy of ``net`` or a cascade of it, with its heads trained; not a bit of the trunk moves.

    The trunk is run once over the samples, in evaluation, and what heads see is kept (in half precision): a CPU can
    afford thousands of steps, and no BatchNorm can drift. Samples are not augmented. With ``self_taught``, samples
    without labels are learned from as well: the full net's probabilities ``[b k]`` then stand for ``y``.
    """
    check_shape(source, net)
    check_plain(net)
    features = cache_features(net, None, source, progress=config.progress)
    labels = [batch.y for batch in source if batch.y is not None]
    y_n = torch.cat(labels) if labels else torch.empty(0)
    if self_taught and not labels:
        y_n = features.logits_nk.softmax(-1)
    if len(y_n) != len(features):
        raise SourceError(
            f"{len(y_n)} labels for {len(features)} samples; this method learns from labels, give one each"
        )
    if labels:
        check_labels(y_n, net.num_classes)
    student.requires_grad_(False)
    trained = module(student)
    trained.requires_grad_(True).train()

    def step(heads: nn.Module, draw: Generator, done: float) -> Tensor:
        like = next(heads.parameters())
        index = torch.randint(len(features), (max(batch_size, 2),), generator=draw)
        reduced_e = [reduced[index].to(like) for reduced in features.reduced_e]
        return loss(heads(reduced_e, features.logits_nk[index].to(like)), y_n[index].to(like.device), done)

    fit(trained, step, drawing(config, batch_size, len(features)))
    return handed_back(student, net)


def handed_back(student: DynamicNet, net: DynamicNet) -> DynamicNet:
    """The trained net where ``net`` is, in evaluation, its parameters wanting gradients as those of ``net`` do."""
    student.to(next(net.parameters()).device)
    if student.cascade is not None and net.cascade is None:
        return student.requires_grad_(any(p.requires_grad for p in net.parameters())).eval()
    take_flags(student, net)
    return student


def labelled(config: FitConfig, label: str, **options: object) -> FitConfig:
    """The config under a method's name, so that no other method's checkpoint is gone on with."""
    about = ", ".join(f"{name} {value}" for name, value in options.items())
    return replace(config, label=label, about=about)


def drawing(config: FitConfig, batch_size: int, count: int) -> FitConfig:
    """The config with what is drawn in its name: other batches, or of other samples, are another run."""
    drawn = f"batches of {batch_size} from {count:,} rows"
    return replace(config, about=f"{config.about}, {drawn}" if config.about else drawn)
