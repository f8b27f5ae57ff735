"""Attention distilled into exits: from modules that see later layers, or, as the baseline, from the next stage's map.

The trunk stays as it is: it is run once over the samples, and the heads learn from the features it gave. Samples may be
labelled, unlabelled or synthesized; without labels the full net's answers take their place.

Shapes: b samples, p positions, k classes. There are e exits, the last is the full net.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from typing_extensions import Unpack

from dynext.data.given import LearnOptions, takes_data
from dynext.errors import FitError, SourceError
from dynext.fitting import FitConfig, configured, fit
from dynext.losses.exits import attention_mimicry, attention_transfer, distillation
from dynext.modules.exits import Exit
from dynext.modules.modes import take_flags
from dynext.net.dynamic_net import DynamicNet
from dynext.net.features import Features, cache_features
from dynext.prune.attention_maps import attention_map, normalized, of_reduced, resized, spatial_softmax
from dynext.prune.auxiliary import Auxiliary, MaskedPaths, watching
from dynext.types import Data, Source
from dynext.usual_modes import in_usual_modes

USUAL = FitConfig()
"""What training takes without a config."""

FADE = (0.25, 0.75)
"""Shares of the training between which the exits' own masks are faded out."""


@in_usual_modes
@takes_data("source")
def distill_attention(
    auxiliary: Auxiliary,
    source: Data,
    config: FitConfig | None = None,
    *,
    teacher: nn.Module | None = None,
    anneal: bool = True,
    attention: float = 1.0,
    temperature: float = 4.0,
    alpha: float = 0.5,
    **options: Unpack[LearnOptions],
) -> Auxiliary:
    """A copy of ``auxiliary`` whose exits have learned from the attention lent to them; `detach` gives the net.

    Loss, summed over early exits, for an exit's feature ``f``, its head ``h``, its own mask ``b`` and the mask ``a`` of
    the module that sees a later layer: the task loss of ``h(a f)`` and of ``h(b f)``, plus ``attention`` times the
    squared distance of the two masks as attention maps, plus tau^2 KL(p_a || p_b), without gradient into the teacher of
    either term. The task loss is ``1 - alpha`` times the cross-entropy and ``alpha`` times the distillation loss of the
    full net; without labels the latter alone.

    Args:
        source: samples with labels, without, or synthesized ones.
        teacher: the static net; ``None`` takes the net's own last exit.
        anneal: fade the exits' own masks to 1 in the middle half of the training; they then cost nothing.
        attention: weight of the masks' distance.
        options: fields of `dynext.FitConfig`.

    Raises:
        FitError: figures out of range. SourceError: no samples, or samples of another shape.

    Source: ours; the maps' distance is Zagoruyko & Komodakis, ICLR 2017, arXiv:1612.03928, eq. 2.
    """
    config = configured(USUAL, config, options)
    _check(attention, temperature, alpha)
    learner = copy.deepcopy(auxiliary)
    cached = _CachedSource.of(watching(learner.net), teacher, source, progress=config.progress)

    def step(module: nn.Module, draw: Generator, done: float) -> Tensor:
        batch = cached.draw(config.batch_size, draw, like=next(module.parameters()))
        learner.strength = _strength(done) if anneal else 1.0
        losses = [
            batch.task_loss(path.own_bk, temperature, alpha)
            + batch.task_loss(path.lent_bk, temperature, alpha)
            + distillation(path.own_bk, path.lent_bk, temperature)
            + attention * attention_transfer(_unit_map(path.own_mask), _unit_map(path.lent_mask))
            for path in module(batch.reduced_e)
        ]
        return torch.stack(losses).sum()

    about = f"anneal {anneal}, attention {attention:g}, temperature {temperature:g}, alpha {alpha:g}, {learner.later}"
    _train(_MaskedHeads(learner), step, replace(config, label="distilling attention", about=about))
    learner.strength = 0.0 if anneal else 1.0
    learner.to(next(auxiliary.parameters()).device)
    take_flags(learner, auxiliary)
    return learner


@in_usual_modes
@takes_data("source")
def transfer_attention(
    net: DynamicNet,
    source: Data,
    config: FitConfig | None = None,
    *,
    teacher: nn.Module | None = None,
    weight: float = 0.1,
    start: float = 0.5,
    temperature: float = 4.0,
    alpha: float = 0.5,
    **options: Unpack[LearnOptions],
) -> DynamicNet:
    """A copy of ``net`` in which the first map of each exit's head mimics the next stage's attention map.

    This is what `distill_attention` is to be compared with. Loss, summed over early exits: the task loss (as there),
    and from a share ``start`` of the training on ``weight`` times the mean squared difference of the two maps as
    distributions over positions. With ``weight=0`` the heads are trained plainly.

    Args:
        teacher: the static net; ``None`` takes the net's own last exit.
        options: fields of `dynext.FitConfig`.

    Raises:
        FitError: an exit whose head has no map of its own, or has it behind a mask; figures out of range.
        SourceError: no samples, or samples of another shape.

    Source: SAD, Hou et al., ICCV 2019, arXiv:1908.00821: weight .1, switched on late. There a stage mimics the next;
    ours, whose trunk does not move, has the first map of each head do so.
    """
    config = configured(USUAL, config, options)
    _check(weight, temperature, alpha)
    student = copy.deepcopy(net)
    cached = _CachedSource.of(watching(student), teacher, source, progress=config.progress)
    heads = _MappedHeads(student, mapped=weight > 0)

    def step(module: nn.Module, draw: Generator, done: float) -> Tensor:
        batch = cached.draw(config.batch_size, draw, like=next(module.parameters()))
        losses = []
        for e, (logits_bk, own) in enumerate(module(batch.reduced_e[:-1])):
            loss = batch.task_loss(logits_bk, temperature, alpha)
            if own is not None and done >= start:
                loss = loss + weight * attention_mimicry(*_distributions(own, batch.reduced_e[e + 1]))
            losses.append(loss)
        return torch.stack(losses).sum()

    about = f"weight {weight:g}, start {start:g}, temperature {temperature:g}, alpha {alpha:g}"
    _train(heads, step, replace(config, label="mimicking the next stage", about=about))
    student.to(next(net.parameters()).device)
    take_flags(student, net)
    return student


def _check(weight: float, temperature: float, alpha: float) -> None:
    if weight < 0 or not temperature > 0 or not 0 <= alpha <= 1:
        raise FitError(
            f"weight of attention {weight}, temperature {temperature}, alpha {alpha}; "
            f"give 0 or more, a positive one, and a share"
        )


def _strength(done: float) -> float:
    """How much the exits' own masks count when a share ``done`` of the training is over.

    >>> [_strength(done) for done in (0.0, 0.5, 0.75)]
    [1.0, 0.5, 0.0]
    """
    begin, end = FADE
    return min(1.0, max(0.0, (end - done) / (end - begin)))


def _unit_map(mask: Tensor) -> Tensor:
    """A mask as an attention map of length 1, ``[b p]``."""
    return normalized(attention_map(of_reduced(mask)))


def _distributions(own: Tensor, later: Tensor) -> tuple[Tensor, Tensor]:
    """A head's map and a later stage's, at the head's size, as distributions ``[b p]``."""
    later_bhw = attention_map(resized(of_reduced(later), (own.shape[2], own.shape[3])))
    return spatial_softmax(attention_map(own)), spatial_softmax(later_bhw)


class _CachedBatch:
    """Some of the cached samples: what the heads get, what the full net answered, labels where there are some."""

    def __init__(self, reduced_e: list[Tensor], full_bk: Tensor, y_b: Tensor | None) -> None:
        self.reduced_e, self.full_bk, self.y_b = reduced_e, full_bk, y_b

    def task_loss(self, logits_bk: Tensor, temperature: float, alpha: float) -> Tensor:
        taught = distillation(logits_bk, self.full_bk, temperature)
        return taught if self.y_b is None else (1 - alpha) * F.cross_entropy(logits_bk, self.y_b) + alpha * taught


class _CachedSource:
    """The trunk's features of all samples, and labels ``[n]`` if every sample has one."""

    def __init__(self, features: Features, y_n: Tensor | None) -> None:
        self.features, self.y_n = features, y_n

    @classmethod
    def of(cls, watch: DynamicNet, teacher: nn.Module | None, source: Source, *, progress: bool) -> _CachedSource:
        if len(watch.exits) < 2:
            raise FitError("the net has no early exit to train; attach some (dx.attach)")
        features = cache_features(watch, teacher, source, progress=progress)
        labels = [batch.y for batch in source if batch.y is not None]
        if labels and sum(map(len, labels)) != len(features):
            raise SourceError("some samples have labels and some have none; give all or drop them")
        return cls(features, torch.cat(labels) if labels else None)

    def draw(self, count: int, draw: Generator, *, like: Tensor) -> _CachedBatch:
        """``count`` samples, at least two, on the device and of the type of ``like``."""
        index = torch.randint(len(self.features), (max(count, 2),), generator=draw)
        return _CachedBatch(
            [reduced[index].to(like) for reduced in self.features.reduced_e],
            self.features.logits_nk[index].to(like),
            None if self.y_n is None else self.y_n[index].to(like.device),
        )


class _MaskedHeads(nn.Module):
    """Heads, their masks and the lent modules, without the trunk, which `fit` must not train."""

    def __init__(self, auxiliary: Auxiliary) -> None:
        super().__init__()
        self.exits = auxiliary.net.exits
        self.lookouts = auxiliary.attention_modules  # by this name they stand in checkpoints
        self._paths: Callable[[list[Tensor]], list[MaskedPaths]] = auxiliary.paths_of_reduced

    def forward(self, reduced_e: list[Tensor]) -> list[MaskedPaths]:
        return self._paths(reduced_e)


class _MappedHeads(nn.Module):
    """Heads that give, beside their logits, the first map ``[b c h w]`` of their own."""

    def __init__(self, net: DynamicNet, *, mapped: bool) -> None:
        super().__init__()
        self.exits, self.mapped = net.exits, mapped
        flat = [exit.name for exit in net.exits if not _has_map(exit.embedder)]
        if mapped and flat:
            raise FitError(
                f"the exit after {flat[0]} makes no map that could mimic another; attach dx.heads.conv_heads"
            )

    def forward(self, reduced_e: list[Tensor]) -> list[tuple[Tensor, Tensor | None]]:
        return [self._logits_and_map(exit, reduced) for exit, reduced in zip(self.exits, reduced_e, strict=True)]

    def _logits_and_map(self, exit: Exit, reduced: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.mapped:
            return exit.head(reduced), None
        x, first_map = reduced, None
        for layer in cast(nn.Sequential, exit.embedder):
            x = layer(x)
            if first_map is None and isinstance(layer, nn.ReLU):
                first_map = x
        return exit.classifier(x), first_map


def _has_map(embedder: nn.Module) -> bool:
    """Whether it is a chain with a convolution and a ReLU in it, whose output is a map."""
    kinds = [type(layer) for layer in embedder.children()] if isinstance(embedder, nn.Sequential) else []
    return nn.Conv2d in kinds and nn.ReLU in kinds[kinds.index(nn.Conv2d) :]


def _train(heads: nn.Module, step: Callable[[nn.Module, Generator, float], Tensor], config: FitConfig) -> None:
    """Everything in ``heads`` gets gradients and is in training meanwhile; callers give the flags back."""
    heads.requires_grad_(True).train()
    fit(heads, step, config, modes="given")
