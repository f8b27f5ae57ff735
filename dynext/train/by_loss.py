"""Training by a loss of all exits: all that a method has to bring, whether published or one's own.

A loss is called ``loss(logits_nek, y, net)``: the logits of every exit ``[n e k]``, the last exit's the full net's;
``y`` the labels ``[n]``, or with a teacher its probabilities ``[n k]``; the net that is being trained, for its MACs or
its weights. It gives one number. If it has a parameter ``done`` it is told the share of the steps that are done. A
module with parameters (weights of the exits, say) is copied, and they are trained along.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Generator, Tensor, nn

from dynext import plugins
from dynext.errors import FitError
from dynext.fitting import FitConfig, fit
from dynext.net.dynamic_net import DynamicNet
from dynext.net.equilibrium import logits_in_equilibrium
from dynext.train.batches import Augment, BatchSampler, TaughtBatches
from dynext.train.exit_loop import (
    HeadOutputs,
    TrainableHeads,
    check_has_exits,
    check_one_rate,
    handed_back,
    named_by_draws,
    train_heads,
    train_whole,
)
from dynext.train.frozen_teacher import BesideMode
from dynext.types import Source

ExitLoss: TypeAlias = Callable[..., Tensor]
"""``loss(logits_nek, y, net) -> scalar``, or ``loss(logits_nek, y, net, done)``."""

Trunk = Literal["frozen", "joint"]


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """Who says what is right in place of labels, and how the trunk normalizes beside it (`train.frozen_teacher`)."""

    teacher: nn.Module
    bn: BesideMode | None = None
    """As suits the samples without: the batch's statistics for synthesized ones, running ones else."""


def train_by_loss(
    net: DynamicNet,
    source: Source,
    config: FitConfig,
    loss: ExitLoss | Sequence[ExitLoss],
    *,
    trunk: Trunk,
    teaching: Teaching | None = None,
    augment: Augment | None = None,
    balance: bool = False,
) -> DynamicNet:
    """A copy of ``net`` trained by ``loss``, or by the sum of several: its heads on cached features, or all of it.

    Args:
        balance: gradients of the exits in balance (`dynext.net.equilibrium`), with ``trunk="joint"``.

    Raises:
        FitError: no early exit, no such ``trunk``, or a loss that cannot be called so or gives something else.
        SourceError: no labels and no teacher, or samples of another shape than the model expects.
    """
    check_has_exits(net)
    if trunk not in get_args(Trunk):
        raise FitError(f"trunk={trunk!r}; give 'frozen' or 'joint'")
    losses = Losses(loss)
    if trunk == "joint":
        check_one_rate(config)
        if teaching is not None:
            return _all_of_it_taught(net, source, config, losses, teaching, augment)
        batches = BatchSampler.of(source, net, augment)
        return train_whole(net, batches, config, lambda student: LossOfExits(student, losses, balance), losses.of)
    if augment is not None:
        raise FitError("heads learn on cached features, which cannot be augmented; leave augment out, or trunk='joint'")
    teacher = None if teaching is None else teaching.teacher
    student = copy.deepcopy(net)
    return train_heads(
        net, student, source, config, losses.of, module=lambda heads: LossOfHeads(heads, losses), teacher=teacher
    )


class Losses:
    """The losses of a run, added up; each is checked when it is given and when it first answers.

    Raises:
        FitError: none, or one that is not called ``(logits_nek, y, net)``.
    """

    def __init__(self, loss: ExitLoss | Sequence[ExitLoss]) -> None:
        given = list(loss) if isinstance(loss, Sequence) else [loss]
        if not given or not all(callable(one) for one in given):
            raise FitError(f"loss={loss!r}; give a function loss(logits_nek, y, net), or a list of them")
        self.names = [plugins.reference(one) for one in given]
        self.told_done = [_takes_done(one, name) for one, name in zip(given, self.names, strict=True)]
        self.each = [copy.deepcopy(one) if isinstance(one, nn.Module) else one for one in given]
        self.modules = nn.ModuleList(one for one in self.each if isinstance(one, nn.Module))

    def of(self, seen: Seen | SeenByHeads, y: Tensor, done: float) -> Tensor:
        """The sum of the losses of what the net says."""
        values = []
        for one, name, told in zip(self.each, self.names, self.told_done, strict=True):
            more = {"done": done} if told else {}
            values.append(_checked(one(seen.logits_nek, y, seen.net, **more), name))
        total = torch.stack(values).sum() if len(values) > 1 else values[0]
        if done == 0 and isinstance(seen, SeenByHeads):
            _check_early(total, seen.logits_nek)
        return total


def _takes_done(loss: ExitLoss, name: str) -> bool:
    """Whether ``loss`` asks for the share of the steps that are done."""
    function = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin, which says nothing of itself
        return False
    more = {"done": 0.0} if "done" in signature.parameters else {}
    try:
        signature.bind(None, None, None, **more)
    except TypeError as error:
        raise FitError(f"loss {name} is called loss(logits_nek, y, net), and does not take that ({error})") from error
    return bool(more)


def _checked(value: object, name: str) -> Tensor:
    """Raises FitError: no number that training could descend."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        given = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise FitError(
            f"loss {name} gave {given}; give one number as a tensor, such as the mean over samples and exits"
        )
    if not value.requires_grad:
        raise FitError(
            f"loss {name} gave a number without a gradient; compute it from logits_nek, without .detach(), .item(), "
            f"argmax or torch.no_grad()"
        )
    return value.reshape(())


def _check_early(total: Tensor, logits_nek: Tensor) -> None:
    """Raises FitError: what the last exit says counts, which a frozen trunk does not change, and no early exit does."""
    (slope_nek,) = torch.autograd.grad(total, logits_nek, retain_graph=True, allow_unused=True)
    if slope_nek is not None and bool((slope_nek[:, :-1] == 0).all()) and bool((slope_nek[:, -1] != 0).any()):
        raise FitError(
            "the loss depends on the last exit alone, which a frozen trunk leaves as it is; give trunk='joint', or a "
            "loss of the early exits too"
        )


class Seen(NamedTuple):
    """What a loss is given of a batch: every exit's logits ``[n e k]``, and the net in training."""

    logits_nek: Tensor
    net: DynamicNet


class SeenByHeads(NamedTuple):
    """The same where heads alone are trained: the last exit's logits are no more than constants."""

    logits_nek: Tensor
    net: DynamicNet


class LossOfExits(nn.Module):
    """``x [b ...]`` to every exit's logits ``[b e k]``; holds what of the losses is trained along."""

    def __init__(self, net: DynamicNet, losses: Losses, balance: bool) -> None:
        super().__init__()
        self.net, self.losses, self.balance = net, losses.modules, balance

    def forward(self, x: Tensor) -> Seen:
        logits_e = logits_in_equilibrium(self.net, x, balance=self.balance)[0]
        return Seen(torch.stack(logits_e, dim=1), self.net)


class LossOfHeads(TrainableHeads):
    """Reduced taps to every exit's answer ``[b e k]``, the full net's last; holds what of the losses is trained."""

    def __init__(self, net: DynamicNet, losses: Losses) -> None:
        super().__init__(net)
        self.losses = losses.modules
        self._net = (net,)  # in a tuple: the trunk is no part of what is trained

    def forward(self, reduced_e: list[Tensor], full_bk: Tensor) -> SeenByHeads:  # type: ignore[override]
        said: HeadOutputs = super().forward(reduced_e, full_bk)
        return SeenByHeads(torch.stack([*said.answer_e, said.full_bk], dim=1), self._net[0])


def _all_of_it_taught(
    net: DynamicNet,
    source: Source,
    config: FitConfig,
    losses: Losses,
    teaching: Teaching,
    augment: Augment | None,
) -> DynamicNet:
    """As `train_whole`, with a teacher's probabilities in place of labels; the trunk is in evaluation, as it is."""
    bn: BesideMode = teaching.bn or ("batch" if source.bn == "batch" else "frozen")
    taught = TaughtBatches.of(source, net, teacher=teaching.teacher, augment=augment, bn=bn)
    student = copy.deepcopy(net).requires_grad_(True)
    trained = LossOfExits(student, losses, balance=False)

    def step(module: nn.Module, draw: Generator, done: float) -> Tensor:
        with taught.drawn(student.staged, config.batch_size, draw) as batch:
            return losses.of(module(batch.x), batch.target, done)

    fit(trained, step, named_by_draws(config, taught.sampler.num_samples))
    return handed_back(student, net, taught.sampler.content)
