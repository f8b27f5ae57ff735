"""How far thresholds that were chosen on synthesized samples can be trusted on real ones. No image is needed to say.

Two witnesses. *Leave one kind out*: samples synthesized in two ways stand for each other as they are to stand for real
ones; what a threshold that is safe on one kind loses on the other, it may lose on real samples, which is why thresholds
must hold on both (`dynext.zeroshot.thresholds`). *BatchNorm distance*: how far the samples' statistics are from those
that the teacher stored of its training set. Neither proves that thresholds hold; each can show that they will not.

Shapes: n samples, e exits (the last is the full net), t thresholds.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dynext.brief import short_repr
from dynext.data.given import takes_data
from dynext.errors import SourceError
from dynext.policy.bounds import lower_bound
from dynext.policy.calibrate import Calibration
from dynext.policy.choose import DEFAULT_MAX_DROP
from dynext.policy.confidence import confidence
from dynext.policy.table import ExitTable
from dynext.types import Data, InputSpec
from dynext.zeroshot.synth.bn_statistics import as_input, bn_distance, has_batch_norm

MAX_BN_DISTANCE = 1.0
"""Squared deviations between the samples' statistics and the teacher's; beyond it features are not the training
set's.
"""


@dataclass(frozen=True, kw_only=True)
class Shift:
    """What separates the kinds of synthesized samples from one another and from the training set, as far as it
    shows.
    """

    __repr__ = short_repr

    overshoot: float
    """Loss on one kind of samples at a threshold that keeps to the allowed loss on another, as a multiple of the
    allowed loss; the worst over exits and pairs, by a lower confidence bound, at least 1.
    """
    where: str
    """Which exit and pair that was; empty if no pair lost more than allowed."""
    bn_distance: float | None
    """Of the nearest kind, 0 is a perfect match; ``None`` where the teacher has no BatchNorm."""
    max_drop: float
    """The allowed loss, as a share of the samples."""

    @property
    def refused(self) -> bool:
        """Whether no threshold should be taken from such samples; always, where no BatchNorm says how far they are."""
        return self.bn_distance is None or self.bn_distance >= MAX_BN_DISTANCE

    @property
    def caution(self) -> float:
        """Share of the allowed loss that thresholds which hold on every kind may use up; it falls to nothing as the
        BatchNorm distance grows to its limit.

        The overshoot does not count here: where kinds differ, holding on all of them is what makes thresholds strict.
        """
        return 0.0 if self.bn_distance is None else max(1 - self.bn_distance / MAX_BN_DISTANCE, 0.0)

    def __str__(self) -> str:
        if self.bn_distance is None:
            return (
                "the net has no BatchNorm that would tell how far synthetic samples are from real ones: no threshold "
                "from these; choose some on a few hundred unlabelled images"
            )
        far = f"BatchNorm distance {self.bn_distance:.2f}"
        if self.refused:
            return f"too large a shift ({far}): no threshold from synthetic samples"
        return f"{far}; thresholds for one kind alone lose up to {self.overshoot:.1f} times as much on another" + (
            f" ({self.where})" if self.where else ""
        )


def estimate_shift(
    tables: Sequence[ExitTable],
    bn_distances: Sequence[float] | None,
    *,
    max_drop: float = DEFAULT_MAX_DROP,
    temperature: Calibration | Sequence[float] | None = None,
    measure: str = "max_probability",
    delta: float = 0.05,
) -> Shift:
    """Compare tables of differently synthesized samples, each with its BatchNorm distance.

    For each exit alone and each ordered pair of tables: the least cautious threshold at which, from there up, the first
    loses at most ``max_drop`` (samples that leave and are answered unlike the full net, as a share of all samples), and
    what the second loses at it.

    Args:
        bn_distances: one a table, as `bn_distance_of` gives them; ``None`` for a teacher without BatchNorm.
        temperature: of each exit, as the policy will have it; 1 without it.
        measure: of confidence; not patience, which no exit has alone.
        delta: how often the bound on the second table's loss may be wrong; 500 samples a table or more make it useful.

    Raises:
        SourceError: fewer than two tables, tables of different nets, or not one distance each.
    """
    _check(tables, bn_distances)
    num_early = tables[0].num_exits - 1
    temperature_e = temperature.temperature_e if isinstance(temperature, Calibration) else temperature
    overshoot, where = 1.0, ""
    for e in range(num_early):
        scale = 1.0 if temperature_e is None else temperature_e[e]
        columns = [_Column.of(table, e, scale, measure) for table in tables]
        for (a, first), (b, second) in itertools.permutations(enumerate(columns), 2):
            lost, rows = second.lost_at(first.threshold(max_drop))
            ratio = float(lower_bound(lost, rows, delta)) / max(max_drop, 1 / rows)  # one sample may be lost by chance
            if ratio > overshoot:
                overshoot, where = ratio, f"{tables[0].name_e[e]}: from {tables[a].rows} to {tables[b].rows}"
    nearest = None if bn_distances is None else min(bn_distances)
    return Shift(overshoot=overshoot, where=where, bn_distance=nearest, max_drop=max_drop)


@takes_data(unlabelled=("source",))
@torch.no_grad()
def bn_distance_of(
    teacher: nn.Module, source: Data, *, rows: int | None = None, spec: InputSpec | None = None
) -> float | None:
    """`bn_distance` of the samples of ``source``, mean over its batches; ``None`` where the teacher has no BatchNorm.

    A batch should be 64 samples or more: the few samples of a small one differ from any statistics.

    Args:
        samples: that many are enough, to whole batches; all without it.
    """
    if not has_batch_norm(teacher):
        return None
    total, count = 0.0, 0
    for batch in source:
        total += float(bn_distance(teacher, as_input(teacher, batch.x))) * len(batch.x)
        count += len(batch.x)
        if rows is not None and count >= rows:
            break
    return total / count


@dataclass(frozen=True, kw_only=True, eq=False)
class _Column:
    """One exit's samples on one table, the surest first: their confidence, and how many are lost down to each."""

    sure_n: np.ndarray
    lost_n: np.ndarray

    @classmethod
    def of(cls, table: ExitTable, e: int, temperature: float, measure: str) -> _Column:
        sure_n = confidence(table.logits_nek[:, e] / temperature, measure).nan_to_num(-1.0)  # NaN never leaves
        order = sure_n.argsort(descending=True)
        wrong_n = table.answer_ne[:, e] != table.full_answer_n
        return cls(sure_n=sure_n[order].numpy(), lost_n=wrong_n[order].cumsum(0).numpy())

    def threshold(self, max_drop: float) -> float:
        """The lowest at which, and above which, at most ``max_drop`` of the samples are lost."""
        beyond = np.flatnonzero(self.lost_n > max_drop * len(self.lost_n))
        if not len(beyond):
            return 0.0
        return float(np.nextafter(self.sure_n[beyond[0]], np.float32(np.inf)))

    def lost_at(self, threshold: float) -> tuple[int, int]:
        """How many samples leave with another answer than the full net's, of how many samples."""
        leaving = int((self.sure_n >= threshold).sum())
        return int(self.lost_n[leaving - 1]) if leaving else 0, len(self.sure_n)


def _check(tables: Sequence[ExitTable], bn_distances: Sequence[float] | None) -> None:
    if len(tables) < 2:
        raise SourceError(f"{len(tables)} tables; a shift needs two, of samples that were synthesized differently")
    kinds = {(table.name_e, table.trunk_macs_e, table.num_classes) for table in tables}
    if len(kinds) > 1:
        raise SourceError("the tables are of different nets; collect them all with the same one")
    if bn_distances is not None and len(bn_distances) != len(tables):
        raise SourceError(f"{len(bn_distances)} BatchNorm distances for {len(tables)} tables; give one each, or None")
