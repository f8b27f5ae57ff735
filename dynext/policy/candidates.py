"""Sets of exits judged at every threshold, and the order in which the safe rule tries them.

Shape legend: e exits (the last is the full net), t thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dynext.policy.sweep import Floats, Sweep, Sweeper

Rule = Literal["safe", "plain"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdict:
    """One set of exits over the tables of one skip rule, per threshold: worst case of what is lost, mean of what is
    paid."""

    on: tuple[int, ...]
    keep_g: tuple[float | None, ...] | None
    """The skip rule."""
    cost_t: Floats
    price_t: Floats
    """The cost, and what the looks cost beyond their MACs: what is to be small."""
    drop_t: Floats
    """Observed."""
    risk_t: Floats
    """What is held against ``max_drop``: the bound on the drop, or the observed one (plain rule)."""
    doubt_t: Floats
    """Wrong answers to expect, by the exits' own probabilities."""
    score_t: Floats
    """What a budget is spent on: right answers, by their lower bound or observed."""
    supported_t: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Judge:
    """How policies are judged."""

    rule: Rule
    delta: float
    """Of a bound."""
    min_support: int
    overhead: float
    """Price of passing an early exit beyond its MACs, as a share of the static net."""

    @property
    def safe(self) -> bool:
        return self.rule == "safe"

    def verdict(self, on: tuple[int, ...], sweeps: Sequence[Sweep]) -> Verdict:
        least = self.min_support if self.safe else 0
        return Verdict(
            on=on,
            keep_g=sweeps[0].keep_g,
            cost_t=np.mean([s.cost_t for s in sweeps], axis=0),
            price_t=np.mean([s.cost_t + self.overhead * s.looks_t for s in sweeps], axis=0),
            drop_t=np.max([s.drop_t() for s in sweeps], axis=0),
            risk_t=np.max([s.drop_bound_t(self.delta) if self.safe else s.drop_t() for s in sweeps], axis=0),
            doubt_t=np.mean([s.doubt_t for s in sweeps], axis=0),
            score_t=np.min([s.right_bound_t(self.delta) if self.safe else s.right_t / s.rows for s in sweeps], axis=0),
            supported_t=np.min([s.support_t for s in sweeps], axis=0) >= least,
        )


def static_net(sweepers: Sequence[Sweeper], judge: Judge) -> Verdict:
    """The static net, judged like the others: it costs one, loses nothing, and may always be taken."""
    size = len(sweepers[0].grid_t)
    none_t = np.zeros(size)
    right = [sweeper.full_right(judge.delta if judge.safe else None) for sweeper in sweepers]
    return Verdict(
        on=(),
        keep_g=None,
        cost_t=none_t + 1,
        price_t=none_t + 1,
        drop_t=none_t,
        risk_t=none_t,
        doubt_t=none_t,
        score_t=none_t + min(right),
        supported_t=np.ones(size, dtype=bool),
    )


def cautious_path(verdicts: Sequence[Verdict]) -> list[tuple[Verdict, int]]:
    """Policies from the most cautious on, each cheaper than all before; whether anybody was right plays no part."""
    points = [(verdict, int(t)) for verdict in verdicts for t in np.flatnonzero(verdict.supported_t)]
    points.sort(key=lambda point: (point[0].doubt_t[point[1]], point[0].price_t[point[1]]))
    path, cheapest = [], 1.0
    for verdict, t in points:
        if verdict.price_t[t] < cheapest:
            cheapest = float(verdict.price_t[t])
            path.append((verdict, t))
    return path
