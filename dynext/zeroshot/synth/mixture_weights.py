"""How much of each kind of sample a mixture takes: so that together they have the teacher's statistics and classes.

Shapes: m kinds of samples, b samples of one kind, c channels of all BatchNorms one after the other, k classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynext.modules.modes import batch_norms, evaluating
from dynext.zeroshot.synth.bn_statistics import as_input

STEPS, RATE = 300, 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """What one kind of sample brings to each channel and class; a mixture's is the mean of these by shares."""

    mean_c: Tensor
    square_c: Tensor
    answer_k: Tensor
    """Mean of the teacher's probabilities."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Wanted:
    """The teacher's side of it: stored statistics per channel, and what a channel counts (1 over its layer's own)."""

    mean_c: Tensor
    var_c: Tensor
    weight_c: Tensor
    """Adds up to 1; without BatchNorm there is no channel."""


@torch.no_grad()
def moments(teacher: nn.Module, x: Tensor) -> tuple[Moments, Wanted]:
    """What the samples ``x [b ...]`` bring to the teacher's BatchNorms and classes; the teacher runs in eval."""
    layers: list[tuple[Tensor, ...]] = []

    def style(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        value = inputs[0].double()
        axes = [axis for axis in range(value.ndim) if axis != 1]
        size = torch.full_like(norm.running_mean, 1 / norm.num_features, dtype=torch.double)
        var = norm.running_var.double() + norm.eps
        # eps belongs to both variances (see `bn_distance`), hence to the mean square
        layers.append((value.mean(axes), value.square().mean(axes) + norm.eps, norm.running_mean.double(), var, size))

    handles = [norm.register_forward_pre_hook(style) for norm in batch_norms(teacher)]
    try:
        with evaluating(teacher):
            answer_bk = teacher(as_input(teacher, x))
    finally:
        for handle in handles:
            handle.remove()
    if layers:
        columns = [torch.cat(column).cpu() for column in zip(*layers, strict=True)]
    else:
        columns = [torch.empty(0, dtype=torch.double)] * 5
    brought = Moments(mean_c=columns[0], square_c=columns[1], answer_k=answer_bk.double().softmax(-1).mean(0).cpu())
    return brought, Wanted(mean_c=columns[2], var_c=columns[3], weight_c=columns[4] / max(len(layers), 1))


def mixed_loss(share_m: Tensor, kinds: Sequence[Moments], wanted: Wanted) -> Tensor:
    """`bn_distance` of a mixture of the kinds, plus 1 - entropy of its mean answer (in [0, 1]): a scalar.

    Means and mean squares of a mixture are those of its kinds, averaged by share; so no further pass is needed.
    """
    mean_c = share_m @ torch.stack([kind.mean_c for kind in kinds])
    square_c = share_m @ torch.stack([kind.square_c for kind in kinds])
    answer_k = share_m @ torch.stack([kind.answer_k for kind in kinds])
    deviation_c = (square_c - mean_c.square()).clamp_min(1e-12).sqrt()
    gap_c = (mean_c - wanted.mean_c).square() + (deviation_c - wanted.var_c.sqrt()).square()
    return (wanted.weight_c * gap_c / wanted.var_c).sum() + 1 - entropy(answer_k)


def entropy(share_k: Tensor) -> Tensor:
    """Of shares that add up to 1, over the logarithm of their number: 1 is even, 0 is one alone."""
    return (share_k * -share_k.clamp_min(1e-12).log()).sum() / math.log(max(len(share_k), 2))


def best_shares(kinds: Sequence[Moments], wanted: Wanted, *, least: float) -> list[float]:
    """The shares of least `mixed_loss`, none below ``least``: what statistics cannot see may still be worth having."""
    free = 1 - least * len(kinds)
    weight_m = torch.zeros(len(kinds), dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.Adam([weight_m], lr=RATE)
    with torch.enable_grad():
        for _ in range(STEPS):
            loss = mixed_loss(least + free * weight_m.softmax(0), kinds, wanted)
            (weight_m.grad,) = torch.autograd.grad(loss, weight_m)
            optimizer.step()
    return (least + free * weight_m.detach().softmax(0)).tolist()
