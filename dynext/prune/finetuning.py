"""What a smaller net learns from a larger one: fine-tuning after pruning, and a compact static net from scratch.

Shapes: b samples, e exits (the last is the full net), k classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from typing_extensions import Unpack

from dynext.data.content import Content
from dynext.data.given import LearnOptions, takes_data
from dynext.data.indexing import by_index, check_samples
from dynext.errors import FitError
from dynext.fitting import FitConfig, configured, fit
from dynext.losses.exits import distillation
from dynext.modules.modes import evaluating, statistics, take_flags
from dynext.net.dynamic_net import DynamicNet
from dynext.net.equilibrium import logits_in_equilibrium
from dynext.types import Data, Source
from dynext.usual_modes import in_usual_modes

Augment = Callable[[Tensor, Generator], Tensor]

Norms = Literal["follow", "frozen"]
"""What BatchNorms do in fine-tuning: follow the samples, as in any training, or keep their statistics."""

USUAL = FitConfig(batch_size=64)
"""What training takes without a config."""


@in_usual_modes
@takes_data("source")
def finetune(
    net: DynamicNet,
    teacher: nn.Module,
    source: Data,
    config: FitConfig | None = None,
    *,
    temperature: float = 4.0,
    alpha: float = 0.5,
    norms: Norms | None = None,
    augment: Augment | None = None,
    **options: Unpack[LearnOptions],
) -> DynamicNet:
    """A copy of ``net`` (a pruned one, say) trained as a whole to answer like ``teacher`` again, at every exit.

    Loss, the sum over exits: ``alpha`` times the distillation loss and ``1 - alpha`` times the cross-entropy; without
    labels the former alone, so that a synthesized bank will do.

    Args:
        teacher: the static net as it was before.
        norms: what the stages' BatchNorms do; by default they follow real samples and keep their statistics on
            synthesized ones, which have others. Heads' BatchNorms always follow.
        options: fields of `dynext.FitConfig`.

    Raises:
        FitError: figures out of range, other classes, or a net in 8 bits. SourceError: no samples, or of another shape.

    Source: Hinton et al. 2015, arXiv:1503.02531, as the fine-tuning of a pruned net.
    """
    config = configured(USUAL, config, options)
    if net.int8 is not None:
        raise FitError("a net in 8 bits is not trained; fine-tune the float one and quantize it afterwards")
    norms = norms or ("frozen" if source.bn == "batch" else "follow")
    if norms not in get_args(Norms):
        raise FitError(f"norms={norms!r}; give one of {', '.join(get_args(Norms))}")
    taught = _TaughtSource(teacher, source, temperature=temperature, alpha=alpha, augment=augment)
    check_samples(source, net.staged.input_shape)
    taught.check_classes(net)
    student = copy.deepcopy(net)

    def step(module: nn.Module, draw: Generator, done: float) -> Tensor:
        held: AbstractContextManager[None] = evaluating(student.staged) if norms == "frozen" else nullcontext()
        x, y_b, taught_bk = taught.draw(config.batch_size, draw, like=next(module.parameters()))
        with held:
            logits_e, _ = logits_in_equilibrium(student, x, balance=True)
        return torch.stack([taught.loss(logits_bk, taught_bk, y_b) for logits_bk in logits_e]).sum()

    student.requires_grad_(True).train()
    fit(student, step, replace(config, label="fine-tuning", about=f"{taught.about}, norms {norms}"), modes="given")
    student.to(next(net.parameters()).device)
    take_flags(student, net)
    student.seen = net.seen | Content.of(source)
    return student.eval()


@in_usual_modes
@takes_data("source")
def distill_static(
    student: nn.Module,
    teacher: nn.Module,
    source: Data,
    config: FitConfig | None = None,
    *,
    temperature: float = 4.0,
    alpha: float = 0.5,
    augment: Augment | None = None,
    **options: Unpack[LearnOptions],
) -> nn.Module:
    """A copy of ``student``, a compact static net (`dynext.models`), that has learned to answer like ``teacher``.

    This is the alternative that a dynamic net has to beat. Loss as in `finetune`, of the one answer; synthesized
    samples will do here too.

    Args:
        options: fields of `dynext.FitConfig`.

    Raises:
        FitError: figures out of range, or other classes. SourceError: no samples.

    Source: Hinton et al. 2015, arXiv:1503.02531.
    """
    config = configured(USUAL, config, options)
    taught = _TaughtSource(teacher, source, temperature=temperature, alpha=alpha, augment=augment)
    taught.check_classes(student)
    learner = copy.deepcopy(student)

    def step(module: nn.Module, draw: Generator, done: float) -> Tensor:
        x, y_b, taught_bk = taught.draw(config.batch_size, draw, like=next(module.parameters()))
        return taught.loss(module(x), taught_bk, y_b)

    learner.requires_grad_(True).train()
    fit(learner, step, replace(config, label="distilling a static net", about=taught.about), modes="given")
    learner.to(next(student.parameters()).device)
    take_flags(learner, student)
    return learner.eval()


class _TaughtSource:
    """Samples, and what a frozen teacher answers on them."""

    def __init__(
        self, teacher: nn.Module, source: Source, *, temperature: float, alpha: float, augment: Augment | None
    ) -> None:
        if not temperature > 0 or not 0 <= alpha <= 1:
            raise FitError(f"temperature {temperature}, alpha {alpha}; give a positive one, and a share")
        check_samples(source, source.shape)
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
        self.take, self.num_samples, self.bn, self.shape = by_index(source), len(source), source.bn, source.shape
        self.temperature, self.alpha, self.augment = temperature, alpha, augment
        self.about = f"temperature {temperature:g}, alpha {alpha:g}"

    def check_classes(self, student: nn.Module) -> None:
        like = next(student.parameters())
        x = like.new_zeros(2, *self.shape)
        with torch.no_grad(), evaluating(student):
            ours, theirs = student(x), self.teacher.to(like)(x)
        if ours.shape != theirs.shape:
            raise FitError(f"the teacher answers {tuple(theirs.shape)}, the net {tuple(ours.shape)}; give one task")

    def draw(self, count: int, draw: Generator, *, like: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """``count`` samples, at least two, labels if there are any, and the teacher's logits ``[b k]``, computed on the
        BatchNorm statistics that suit the samples."""
        batch = self.take(torch.randint(self.num_samples, (max(count, 2),), generator=draw))
        x = (batch.x if self.augment is None else self.augment(batch.x, draw)).to(like)
        with torch.no_grad(), statistics(self.teacher, self.bn):
            taught_bk = self.teacher.to(like)(x)
        return x, None if batch.y is None else batch.y.to(like.device), taught_bk

    def loss(self, logits_bk: Tensor, taught_bk: Tensor, y_b: Tensor | None) -> Tensor:
        taught = distillation(logits_bk, taught_bk, self.temperature)
        return taught if y_b is None else self.alpha * taught + (1 - self.alpha) * F.cross_entropy(logits_bk, y_b)
