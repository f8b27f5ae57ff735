"""Why no policy is proven to keep within a loss, and what would change that.

Shape legend: t thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from dynext.policy.candidates import Candidate, Candidates, cautious_path
from dynext.policy.limits import Limits
from dynext.policy.rule import PlainRule, SafeRule
from dynext.policy.sweep import Sweep, Sweeper, weight_bound

WhenUnsafe = Literal["static", "least"]
"""What to take where nothing is proven: the static net, or the policy that needs the least loss to be allowed."""

MOST_ROWS = 10_000_000
"""Above so many samples nobody is told to collect them."""

SkipRule = tuple[float | None, ...] | None


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """The first test of the path that came nearest to passing, and what would have to be otherwise."""

    first: Candidate
    lost: int
    """Of its samples, those that leave with a wrong answer which the full net gets right."""
    num_rows: int
    later: float | None
    """The least risk further down, where that would have been allowed: it is not tested any more."""
    enough: int | None
    """How many samples would do if as large a share of them were lost; ``None`` where none would."""
    max_drop: float | None
    """The least to ask for at which something passes; ``None`` where nothing does."""
    alternative: Candidate
    """What is chosen then; without such, the most that may be had at the risk of ``first``."""
    supported: bool = True
    """Whether as many samples leave as the rule wants; without that nothing was tested."""
    skipping: bool = False
    """Whether skipping was tried as well."""


def first_tests(paths: Sequence[Sequence[Candidates]], *, safe: bool) -> list[Candidate]:
    """What is tested first down each path; where nothing is proven, the policy of the least risk among those that
    save."""
    if safe:
        return [path[0] for groups in paths if (path := cautious_path(groups))]
    saving = [
        group.at(int(np.flatnonzero(saves_t)[group.risk_t[saves_t].argmin()]))
        for groups in paths
        for group in groups
        if (saves_t := group.price_t < 1).any()
    ]
    return [min(saving, key=lambda candidate: (candidate.risk, candidate.price))] if saving else []


def unsupported(paths: Sequence[Sequence[Candidates]]) -> list[list[Candidates]]:
    """The same paths, however few samples leave."""
    return [[replace(group, supported_t=np.ones_like(group.supported_t)) for group in groups] for groups in paths]


def least_risk(candidates: Sequence[Candidates]) -> float | None:
    """Of those that have enough support and save."""
    risks = [
        float(group.risk_t[saves_t].min())
        for group in candidates
        if (saves_t := group.supported_t & (group.price_t < 1)).any()
    ]
    return min(risks, default=None)


def counted(
    first: Candidate, sweepers: Mapping[SkipRule, Sequence[Sweeper]], rule: SafeRule | PlainRule, limits: Limits
) -> tuple[int, int, int | None]:
    """Samples lost by the policy on the table where it does worst, that table's samples, and how many would do."""
    sweeps = [sweeper.sweep(first.on) for sweeper in sweepers[first.keep_g]]
    worst = max(sweeps, key=lambda sweep: float(rule.loss_t(sweep)[first.t]))
    enough = _enough(worst, first.t, rule.delta, limits.max_drop or 0.0) if isinstance(rule, SafeRule) else None
    return round(float(worst.lost_t[first.t])), worst.num_rows, enough


def _enough(sweep: Sweep, t: int, delta: float, max_drop: float) -> int | None:
    """The least number of samples, as large a share of them lost, that bound the drop by ``max_drop``."""
    weight, square, gained = (
        float(sum_t[t]) / sweep.num_rows for sum_t in (sweep.weight_t, sweep.square_t, sweep.gained_t)
    )

    def passes(n: int) -> bool:
        usual = (sweep.usual_weight, sweep.usual_square)
        bound = float(weight_bound(np.float64(weight * n), np.float64(square * n), usual, n, delta))
        return max(bound - gained, 0.0) <= max_drop

    if not passes(MOST_ROWS):
        return None
    low, high = sweep.num_rows, MOST_ROWS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high
