"""Sets of exits scored at every threshold, and the order in which the safe rule tests them.

Shape legend: e exits (the last is the full net), t thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynext.errors import PolicyError
from dynext.policy.bounds import Floats
from dynext.policy.rule import PlainRule, SafeRule
from dynext.policy.sweep import Sweep, Sweeper


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A policy that may be chosen, with its scores; with neither exits nor a skip rule, the static net."""

    on: tuple[int, ...]
    """The early exits that are on."""
    keep_g: tuple[float | None, ...] | None
    """The skip rule."""
    t: int
    """Number of the threshold that the exits share."""
    cost: float
    price: float
    drop: float
    risk: float
    right: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """One set of exits under one skip rule: a policy for each threshold ``[t]``, with its scores.

    Over several tables, what is lost and what is right are the worst cases, what is paid is the mean.
    """

    on: tuple[int, ...]
    keep_g: tuple[float | None, ...] | None
    cost_t: Floats
    """As a share of the static net's."""
    price_t: Floats
    """The cost, and the overhead of exits beyond it: what is to be small."""
    drop_t: Floats
    """Observed."""
    risk_t: Floats
    """What is held against ``max_drop``, by the rule."""
    doubt_t: Floats
    """Wrong answers to expect, by the exits' own probabilities."""
    right_t: Floats
    """What a budget is spent on: right answers, by the rule."""
    supported_t: NDArray[np.bool_]
    """Where enough rows leave for the rule."""

    def at(self, t: int) -> Candidate:
        """The policy of one threshold."""
        return Candidate(
            on=self.on,
            keep_g=self.keep_g,
            t=t,
            cost=float(self.cost_t[t]),
            price=float(self.price_t[t]),
            drop=float(self.drop_t[t]),
            risk=float(self.risk_t[t]),
            right=float(self.right_t[t]),
        )


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Turns what sweeps counted into scores.

    Raises:
        PolicyError: an overhead out of range.
    """

    rule: SafeRule | PlainRule
    overhead: float
    """Price of passing an early exit beyond its MACs, as a share of the static net, in [0, 1)."""

    def __post_init__(self) -> None:
        if not 0 <= self.overhead < 1:
            raise PolicyError(f"overhead {self.overhead}; give a share of the static net's time, such as 0.03")

    def score(self, on: tuple[int, ...], sweeps: Sequence[Sweep]) -> Candidates:
        """The policies that have the exits ``on``, by a sweep of each table."""
        return Candidates(
            on=on,
            keep_g=sweeps[0].keep_g,
            cost_t=np.mean([s.cost_t for s in sweeps], axis=0),
            price_t=np.mean([s.cost_t + self.overhead * s.heads_t for s in sweeps], axis=0),
            drop_t=np.max([s.drop_t() for s in sweeps], axis=0),
            risk_t=np.max([self.rule.loss_t(s) for s in sweeps], axis=0),
            doubt_t=np.mean([s.doubt_t for s in sweeps], axis=0),
            right_t=np.min([self.rule.right_t(s) for s in sweeps], axis=0),
            supported_t=np.all([self.rule.supported_t(s) for s in sweeps], axis=0),
        )

    def static(self, sweepers: Sequence[Sweeper]) -> Candidates:
        """The static net, scored like the others: it costs one, loses nothing, and may always be taken."""
        size = len(sweepers[0].grid_t)
        none_t = np.zeros(size)
        return Candidates(
            on=(),
            keep_g=None,
            cost_t=none_t + 1,
            price_t=none_t + 1,
            drop_t=none_t,
            risk_t=none_t,
            doubt_t=none_t,
            right_t=none_t + min(self.rule.full_right(sweeper) for sweeper in sweepers),
            supported_t=np.ones(size, dtype=bool),
        )


def cautious_path(candidates: Sequence[Candidates]) -> list[Candidate]:
    """Policies from the most cautious on, each cheaper than all before; whether anybody was right plays no part."""
    points = [(group, int(t)) for group in candidates for t in np.flatnonzero(group.supported_t)]
    points.sort(key=lambda point: (point[0].doubt_t[point[1]], point[0].price_t[point[1]]))
    path, cheapest = [], 1.0
    for group, t in points:
        if group.price_t[t] < cheapest:
            cheapest = float(group.price_t[t])
            path.append(group.at(t))
    return path
