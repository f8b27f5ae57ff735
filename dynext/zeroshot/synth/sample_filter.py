"""Which of many samples are worth keeping: those the teacher is sure of, unlike each other, that exits still get wrong.

Shapes: n samples to choose from, e exits (the early ones), k classes, d features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynext.errors import SourceError
from dynext.modules.modes import batch_statistics, evaluating
from dynext.net.dynamic_net import DynamicNet
from dynext.zeroshot.synth.bn_statistics import as_input
from dynext.zeroshot.synth.last_layer import Linear, answer_and_feature
from dynext.zeroshot.synth.terms import competition


@dataclass(frozen=True, kw_only=True)
class Filter:
    """How many samples are made for each one kept, and what counts when the best are chosen."""

    oversample: float = 2.0
    """1 keeps every sample."""
    confidence: float = 0.5
    """Weight of the teacher's largest probability, by rank."""
    disagreement: float = 1.0
    """Weight of the exits' divergence from the teacher, by rank; counts only where there is a student."""
    diversity: float = 1.0
    """Weight of the distance to the nearest sample kept already (1 - cosine of centered features, at most 1)."""
    balance: float = 1.0
    """Weight of how full the sample's class is already."""

    def __post_init__(self) -> None:
        if not self.oversample >= 1:
            raise SourceError(f"oversample={self.oversample}; give 1 (keep all) or more")


@torch.no_grad()
def keep(
    teacher: nn.Module, layer: Linear | None, x: Tensor, count: int, config: Filter, against: DynamicNet | None = None
) -> Tensor:
    """Which ``count`` of the samples ``x [n ...]`` to keep, ascending ``[count]``.

    Teacher and exits look at them as distillation will, BatchNorms on the statistics of these samples.

    Args:
        layer: the teacher's last linear layer, whose input is the feature; its logits without one.
    """
    if count >= len(x):
        return torch.arange(len(x))
    x = as_input(teacher, x)
    with evaluating(teacher), batch_statistics(teacher):
        answer_nk, feature_nd = answer_and_feature(teacher, layer, x)
    worth_n = config.confidence * ranks(answer_nk.softmax(-1).amax(-1))
    if against is not None:
        with evaluating(against), batch_statistics(against.staged):
            exits_nek = against.all_exits(x)[:, :-1]
        worth_n = worth_n + config.disagreement * ranks(competition(exits_nek, answer_nk))
    kept = chosen(worth_n.cpu(), feature_nd.float().cpu(), answer_nk.argmax(-1).cpu(), count, config)
    return kept.sort().values


def ranks(value_n: Tensor) -> Tensor:
    """Each value's place from below, in [0, 1]; what counts is the order, not how a net happens to scale it."""
    return value_n.argsort(stable=True).argsort(stable=True).float() / max(len(value_n) - 1, 1)


def chosen(worth_n: Tensor, feature_nd: Tensor, class_n: Tensor, count: int, config: Filter) -> Tensor:
    """``count`` samples one after the other, each the best that is left after those before it ``[count]``.

    Source of the greedy distance term: k-center, Sener & Savarese, ICLR 2018, arXiv:1708.00489.
    """
    unit_nd = F.normalize(feature_nd - feature_nd.mean(0), dim=1)
    near_n = torch.ones(len(worth_n))
    room = count / max(len(class_n.unique()), 1)
    full_k = torch.zeros(int(class_n.max()) + 1)
    left_n = torch.zeros(len(worth_n))
    picked = []
    for _ in range(count):
        score_n = worth_n + config.diversity * near_n - config.balance * full_k[class_n] + left_n
        best = int(score_n.argmax())
        picked.append(best)
        left_n[best] = -torch.inf
        full_k[class_n[best]] += 1 / room
        near_n = torch.minimum(near_n, 1 - unit_nd @ unit_nd[best])
    return torch.tensor(picked)
