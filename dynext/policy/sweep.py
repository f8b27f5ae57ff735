"""Every shared threshold of a set of exits, counted at once.

Once temperatures are set, equal confidences mean equal risk at every exit, so that one threshold shared by the exits
that are on is near the best there is; and few rows are enough to choose a single parameter.

Shape legend: n rows, e exits (the last is the full net), t thresholds, ascending.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynext.policy.bounds import Floats, lower_bound, upper_bound
from dynext.policy.confidence import Measure, confidences
from dynext.policy.table import ExitTable

Risk = Literal["drop", "disagreement"]

MAX_THRESHOLDS = 200
MAX_EXITS_IN_FULL = 6
"""Above so many early exits not every subset is tried."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
    """What each threshold ``[t]`` does on one table, for one set of exits."""

    cost_t: Floats
    """Mean MACs as a share of the static net's, heads included."""
    heads_t: Floats
    """Mean number of early exits whose head a row runs."""
    support_t: Floats
    """Rows that leave at the exit, among those that are on, where fewest leave; or that skip a stage, if fewer do."""
    right_t: Floats
    """Rows answered right (basis of the table)."""
    lost_t: Floats
    """Rows the full net gets right and the exit they leave at does not."""
    gained_t: Floats
    """The other way round; 0 when the full net is what counts as right."""
    weight_t: Floats
    """Sum of the lost rows' weights, at most 1 each."""
    square_t: Floats
    """Sum of their squares."""
    usual_weight: float
    """Mean weight of all rows that these exits would get wrong, whether they leave or not."""
    usual_square: float
    """Mean square of it."""
    doubt_t: Floats
    """Expected share of the rows that leave with a wrong answer, by their own probabilities."""
    num_rows: int
    keep_g: tuple[float | None, ...] | None = None
    """By which rule the rows skipped stages."""

    def drop_t(self) -> Floats:
        """Observed drop: weight lost less rows gained, as a share of all rows."""
        return (self.weight_t - self.gained_t) / self.num_rows

    def drop_bound_t(self, delta: float) -> Floats:
        """Upper bound on the drop: `weight_bound` on what is lost, less the gains, which count as observed and never
        make the bound negative."""
        usual = (self.usual_weight, self.usual_square)
        lost_t = weight_bound(self.weight_t, self.square_t, usual, self.num_rows, delta)
        return np.maximum(lost_t - self.gained_t / self.num_rows, 0.0)

    def right_bound_t(self, delta: float) -> Floats:
        """Lower bound on the share of rows answered right."""
        return lower_bound(self.right_t, self.num_rows, delta)


def weight_bound(
    weight_t: Floats | float,
    square_t: Floats | float,
    usual: tuple[float, float],
    num_rows: int,
    delta: float,
) -> Floats:
    """Upper bound on the mean weight of ``num_rows`` rows whose weights sum up to ``weight_t``: Clopper-Pearson.

    Weights w of one typical size s = sum w^2 / sum w are bounded as s times a count of sum w / s rows; that is exact
    when they are equal. One row of the ``usual`` weight (and its square) goes into s, so that few or no lost rows do
    not pass for harmless ones.

    Source: the scaled Poisson distribution, Bohm & Zech, NIM A 2014, arXiv:1309.1287, here with a binomial.
    """
    size_t = (square_t + usual[1]) / (weight_t + usual[0])
    return np.asarray(size_t * upper_bound(np.clip(weight_t / size_t, 0, num_rows), num_rows, delta))


class Sweeper:
    """Sweeps one table at one grid of thresholds: what does not depend on the set of exits is counted once.

    Args:
        temperature_e: of every exit, the last included.
        risk: what a lost row is. ``"drop"``: with labels, one the full net gets right and the exit wrong; without,
            one the exit answers unlike the full net, weighing what the full net's own probabilities say is lost.
            ``"disagreement"``: one the exit answers unlike the full net, weighing 1.
    """

    def __init__(
        self, table: ExitTable, measure: Measure, temperature_e: Sequence[float], grid_t: Tensor, risk: Risk
    ) -> None:
        self.table, self.measure, self.temperature_e, self.grid_t = table, measure, temperature_e, grid_t
        full_n = table.full_right_n[:, None] if risk == "drop" else torch.ones(len(table), 1, dtype=torch.bool)
        right_ne = table.right_ne if risk == "drop" else table.answer_ne == table.full_answer_n[:, None]
        weighs = risk == "drop" and table.basis == "teacher"
        weight_ne = _weights(table, temperature_e[-1]) if weighs else torch.ones(right_ne.shape)
        self.lost_ne = (full_n & ~right_ne).numpy()
        self.gained_ne = (~full_n & right_ne).numpy()
        self.weight_ne = weight_ne.double().numpy() * self.lost_ne
        self.right_ne = table.right_ne.numpy()
        sure_ne = confidences(table.logits_nek, "max_probability", temperature_e)
        self.doubt_ne = 1 - sure_ne.nan_to_num(0.0).double().numpy()
        # who ran the whole net is answered by it
        self.doubt_ne[:, -1] *= 0.0 if table.skipped is None else (~table.skipped.whole_n).numpy()
        self.skipping = len(table) if table.skipped is None else int((~table.skipped.whole_n).sum())
        self._bin_ne = None if measure == "patience" else self._bins(None)

    def _bins(self, enabled_e: Sequence[bool] | None) -> NDArray[np.int64]:
        """How many thresholds each confidence reaches ``[n e]``; none for NaN."""
        conf_ne = confidences(self.table.logits_nek, self.measure, self.temperature_e, enabled_e)
        reached_ne = torch.searchsorted(self.grid_t, conf_ne.contiguous(), right=True)
        return np.asarray(reached_ne.masked_fill(conf_ne.isnan(), 0).numpy())

    def sweep(self, on: Sequence[int]) -> Sweep:
        """All thresholds with the early exits ``on`` (ascending) switched on."""
        table, n, last = self.table, len(self.table), self.table.num_exits - 1
        enabled_e = [e in on or e == last for e in range(table.num_exits)]
        bin_ne = self._bins(enabled_e) if self._bin_ne is None else self._bin_ne
        macs_ne = table.macs_ne(enabled_e).double().numpy()
        size = len(self.grid_t)
        cost_t, heads_t, support_t = np.zeros(size), np.zeros(size), np.full(size, float(self.skipping))
        lost_t, gained_t, weight_t, square_t, right_t, doubt_t = (np.zeros(size) for _ in range(6))
        before_n = np.zeros(n, np.int64)
        for num_heads, e in enumerate([*on, last], 1):
            # a row leaves here at the thresholds that this exit reaches and none before it did
            reached_n = np.full(n, size) if e == last else np.maximum(before_n, bin_ne[:, e])
            here = np.flatnonzero(reached_n > before_n)
            count = _Counter(before_n[here], reached_n[here], size)
            leaving_t = count()
            cost_t += count(macs_ne[here, e])
            heads_t += leaving_t * min(num_heads, len(on))
            right_t += count(self.right_ne[here, e])
            lost_t += count(self.lost_ne[here, e])
            gained_t += count(self.gained_ne[here, e])
            weight_t += count(self.weight_ne[here, e])
            square_t += count(self.weight_ne[here, e] ** 2)
            doubt_t += count(self.doubt_ne[here, e])
            if e != last:
                support_t = np.minimum(support_t, leaving_t)
            before_n = reached_n
        usual_weight, usual_square = self._usual(on)
        return Sweep(
            keep_g=table.keep_g,
            cost_t=cost_t / n / max(table.static_macs, 1),
            heads_t=heads_t / n,
            support_t=support_t,
            right_t=right_t,
            lost_t=lost_t,
            gained_t=gained_t,
            weight_t=np.maximum(weight_t, 0.0),  # sums of differences may end a rounding error below
            square_t=np.maximum(square_t, 0.0),
            usual_weight=usual_weight,
            usual_square=usual_square,
            doubt_t=doubt_t / n,
            num_rows=n,
        )

    def full_right(self, delta: float | None) -> float:
        """Share of the rows that the full net answers right: a lower bound that is wrong with ``delta``, or
        observed."""
        right, num_rows = float(self.table.full_right_n.sum()), len(self.table)
        return right / num_rows if delta is None else float(lower_bound(np.float64(right), num_rows, delta))

    def _usual(self, on: Sequence[int]) -> tuple[float, float]:
        """Mean weight, and mean square of it, of the rows that the exits ``on`` would get wrong, leaving or not; of
        those that the last one does, too, where stages are skipped."""
        exits = [*on, *([] if self.table.skipped is None else [self.table.num_exits - 1])]
        usual_r = self.weight_ne[:, exits][self.lost_ne[:, exits]]
        usual_r = usual_r if usual_r.any() else np.ones(1)
        return float(usual_r.mean()), float((usual_r**2).mean())

    def drop(self, exit_n: NDArray[np.int64], on: Sequence[int], delta: float) -> tuple[float, float]:
        """What is lost if each row leaves at ``exit_n``, less what is gained, and an upper bound on it."""
        here = np.arange(len(exit_n)), exit_n
        weight_n, gained = self.weight_ne[here], float(self.gained_ne[here].mean())
        total, square = float(weight_n.sum()), float((weight_n**2).sum())
        bound = weight_bound(total, square, self._usual(on), len(exit_n), delta)
        return total / len(exit_n) - gained, max(float(bound) - gained, 0.0)


class _Counter:
    """Sums over rows that each count from threshold ``first_r`` up to, not including, ``end_r``."""

    def __init__(self, first_r: NDArray[np.int64], end_r: NDArray[np.int64], size: int) -> None:
        self.first_r, self.end_r, self.size = first_r, end_r, size

    def __call__(self, value_r: NDArray[np.generic] | None = None) -> Floats:
        if value_r is not None and not value_r.any():
            return np.zeros(self.size)
        comes = np.bincount(self.first_r, value_r, self.size + 1)
        goes = np.bincount(self.end_r, value_r, self.size + 1)
        return np.cumsum(comes - goes)[: self.size]


def _weights(table: ExitTable, temperature: float) -> Tensor:
    """What the full net's probabilities say is lost by each exit's answer ``[n e]``, in [0, 1]; 1 where they are NaN.

    Drop in expected accuracy, if the full net is calibrated; an overconfident one makes it an overestimate.
    """
    probability_nk = (table.full_nk / temperature).softmax(-1)
    weight_ne = probability_nk.amax(1, keepdim=True) - probability_nk.gather(1, table.answer_ne)
    return weight_ne.nan_to_num(1.0)


def threshold_grid(tables: Sequence[ExitTable], measure: Measure, temperature_e: Sequence[float]) -> Tensor:
    """At most about 200 thresholds ``[t]`` (float32, ascending), between the confidences that occur, 0 the first.

    Between, and not at, a confidence: a kernel's last bit then decides nothing.
    """
    last = tables[0].num_exits - 1
    if measure == "patience":
        value_t = torch.arange(1, last + 2) / (last + 1)
    else:
        value_t = torch.cat([confidences(t.logits_nek, measure, temperature_e)[:, :last].flatten() for t in tables])
        value_t = value_t[~value_t.isnan()].sort().values
        if len(value_t) > MAX_THRESHOLDS:
            value_t = value_t[torch.linspace(0, len(value_t) - 1, MAX_THRESHOLDS).round().long()]
        value_t = value_t.unique()
    return torch.cat([torch.zeros(1), (value_t[:-1] + value_t[1:]) / 2]).unique()


def exit_sets(num_early: int) -> Iterator[tuple[int, ...]]:
    """The sets of early exits to try: every subset of up to six; of more, every evenly spaced run of exits."""
    if num_early <= MAX_EXITS_IN_FULL:
        for size in range(1, num_early + 1):
            yield from combinations(range(num_early), size)
        return
    tried = {
        tuple(range(first, end, stride))
        for stride in (1, 2, 4)
        for first in range(num_early)
        for end in range(first + 1, num_early + 1)
    }
    yield from sorted(tried)
