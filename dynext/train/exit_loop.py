"""What the methods that train exits share: a copy of the net is trained, the whole of it or its heads alone.

A method is a loss. `train_whole` hands it what a module makes of the samples, `train_heads` what a module makes of the
features that the frozen trunk has made of them once.

Shapes: b samples in a batch, n samples, k classes. There are e exits, numbered from 0, the last is the full net.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
from torch import Generator, Tensor, nn

from dynext.data.content import Content
from dynext.data.indexing import check_labels, check_samples
from dynext.errors import FitError, SourceError
from dynext.fitting import FitConfig, fit
from dynext.modules.modes import evaluating, statistics, take_flags
from dynext.net.cascade import Link, links_of
from dynext.net.dynamic_net import DynamicNet
from dynext.net.equilibrium import logits_in_equilibrium
from dynext.net.features import Features, cache_features
from dynext.train.batches import BatchSampler
from dynext.types import Source

Outputs = TypeVar("Outputs")
"""What a method's module makes of a batch."""


def check_has_exits(net: DynamicNet) -> None:
    """Refuse a net that has nothing to train beside itself."""
    if not len(net.exits):
        raise FitError("the net has no early exit to train; attach some (dx.attach)")


def check_plain(net: DynamicNet) -> None:
    """Refuse a net without early exits, or whose exits build on each other already."""
    check_has_exits(net)
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
    batches: BatchSampler,
    config: FitConfig,
    module: Callable[[DynamicNet], nn.Module],
    loss: Callable[[Outputs, Tensor, float], Tensor],
) -> DynamicNet:
    """A copy of ``net`` trained as a whole: ``loss(module(x), y [b], share of the steps done)``.

    Raises:
        FitError: no early exit, or a ``config.trunk_lr`` of its own.
    """
    check_has_exits(net)
    check_one_rate(config)
    student = copy.deepcopy(net).requires_grad_(True)

    def step(trained: nn.Module, draw: Generator, done: float) -> Tensor:
        like = next(trained.parameters())  # where the training runs, which need not be where the net is
        batch = batches.draw(config.batch_size, draw)
        assert batch.y is not None  # noqa: S101  `BatchSampler.of` has checked
        return loss(trained(batch.x.to(like)), batch.y.to(like.device), done)

    fit(module(student).train(), step, named_by_draws(config, batches.num_samples), modes="given")
    return handed_back(student, net, batches.content)


def check_one_rate(config: FitConfig) -> None:
    """Refuse a learning rate of the trunk that the method would not heed."""
    if config.trunk_lr not in (None, config.lr):
        raise FitError(
            f"trunk_lr={config.trunk_lr}, but this method trains trunk and exits at one rate (lr={config.lr}); "
            f"leave trunk_lr out"
        )


class HeadOutputs(NamedTuple):
    """What heads say of a batch, beside what the frozen net does."""

    own_e: list[Tensor]
    """Each early head's own logits ``[b k]``."""
    answer_e: list[Tensor]
    """Each early exit's answer ``[b k]``, the same where exits do not build on each other."""
    full_bk: Tensor
    """The full net's logits."""


class TrainableHeads(nn.Module):
    """The heads' trainable parts alone, so that `fit` sees no trunk: reduced taps to own logits and answers."""

    def __init__(self, net: DynamicNet) -> None:
        super().__init__()
        self.links = nn.ModuleList(links_of(net))

    def forward(self, reduced_e: list[Tensor], full_bk: Tensor) -> HeadOutputs:
        own_e: list[Tensor] = []
        answer_e: list[Tensor] = []
        for link, reduced in zip(self.links, reduced_e, strict=True):
            assert isinstance(link, Link)  # noqa: S101
            own_e.append(link.own(reduced, own_e))
            answer_e.append(link.answer(own_e))
        return HeadOutputs(own_e=own_e, answer_e=answer_e, full_bk=full_bk)


def train_heads(
    net: DynamicNet,
    student: DynamicNet,
    source: Source,
    config: FitConfig,
    loss: Callable[[Outputs, Tensor, float], Tensor],
    *,
    module: Callable[[DynamicNet], nn.Module] = TrainableHeads,
    self_taught: bool = False,
    teacher: nn.Module | None = None,
) -> DynamicNet:
    """``student``, a copy of ``net`` or a cascade of it, with its heads trained; not a bit of the trunk moves.

    The trunk is run once over the samples, in evaluation, and what heads see is kept (in half precision): a CPU can
    afford thousands of steps, and no BatchNorm can drift. Samples are not augmented. With ``self_taught``, samples
    without labels are learned from as well: the full net's probabilities ``[b k]`` then stand for ``y``. Those of a
    ``teacher`` do so whether there are labels or not.

    Raises:
        FitError: no early exit, a cascade, or a ``config.trunk_lr``, which a frozen trunk has no use for.
        SourceError: labels missing or out of range, or samples of another shape than the model expects.
    """
    check_plain(net)
    check_samples(source, net.staged.input_shape)
    if config.trunk_lr:
        raise FitError(f"trunk_lr={config.trunk_lr}, but this method leaves the trunk as it is; leave trunk_lr out")
    features = cache_features(net, None, source, progress=config.progress)
    target_n = (
        _targets(net, source, features, self_taught=self_taught)
        if teacher is None
        else taught_probabilities(teacher, source, net.num_classes)
    )
    student.requires_grad_(False)
    trained = module(student)
    trained.requires_grad_(True).train()

    def step(heads: nn.Module, draw: Generator, done: float) -> Tensor:
        like = next(heads.parameters())
        index = torch.randint(len(features), (max(config.batch_size, 2),), generator=draw)
        reduced_e = [reduced[index].to(like) for reduced in features.reduced_e]
        outputs = heads(reduced_e, features.logits_nk[index].to(like))
        return loss(outputs, target_n[index].to(like.device), done)

    fit(trained, step, named_by_draws(config, len(features)), modes="given")
    return handed_back(student, net, features.content)


def _targets(net: DynamicNet, source: Source, features: Features, *, self_taught: bool) -> Tensor:
    """Each sample's label ``[n]``, or the full net's probabilities ``[n k]`` where there is none and none is needed."""
    labels = [batch.y for batch in source if batch.y is not None]
    if self_taught and not labels:
        return features.logits_nk.softmax(-1)
    y_n = torch.cat(labels) if labels else torch.empty(0)
    if len(y_n) != len(features):
        raise SourceError(
            f"{len(y_n)} labels for {len(features)} samples; this method learns from labels, give one each"
        )
    check_labels(y_n, net.num_classes)
    return y_n


@torch.no_grad()
def taught_probabilities(teacher: nn.Module, source: Source, num_classes: int) -> Tensor:
    """What ``teacher``, in evaluation, says of each sample ``[n k]``; BatchNorms as suits the samples.

    Raises:
        FitError: it knows another number of classes.
    """
    like = next(teacher.parameters(), torch.empty(0))
    with evaluating(teacher), statistics(teacher, source.bn):
        logits_nk = torch.cat([teacher(batch.x.to(like)).float().cpu() for batch in source])
    if logits_nk.shape[1:] != (num_classes,):
        raise FitError(f"the teacher knows {tuple(logits_nk.shape[1:])} classes, the net {num_classes}; take its own")
    return logits_nk.softmax(-1)


def handed_back(student: DynamicNet, net: DynamicNet, learned: Content = Content()) -> DynamicNet:
    """The trained net, moved to where ``net`` is; training flags and ``requires_grad`` become those of ``net``.

    A cascade made on the way has other modules than ``net``: it comes back in evaluation, and its parameters require
    gradients if any of ``net`` do.

    Args:
        learned: the real samples that it was trained on.
    """
    student.seen = net.seen | learned
    student.to(next(net.parameters()).device)
    if student.cascade is not None and net.cascade is None:
        return student.requires_grad_(any(p.requires_grad for p in net.parameters())).eval()
    take_flags(student, net)
    return student


def labelled(config: FitConfig, label: str, **options: object) -> FitConfig:
    """The config under a method's name and options, so that no other method's checkpoint is gone on with."""
    about = ", ".join(f"{name} {value}" for name, value in options.items())
    return replace(config, label=label, about=about)


def named_by_draws(config: FitConfig, num_samples: int) -> FitConfig:
    """The config with what is drawn in its identity: batches of another size or of other samples are another run."""
    drawn = f"batches of {config.batch_size} from {num_samples:,} rows"
    return replace(config, about=f"{config.about}, {drawn}" if config.about else drawn)
