"""Fronts: policies with a threshold of its own at every exit, none better than another on the rows they were drawn on.

`dynext.choose` tries one threshold for all exits, a family so small that few rows are enough to choose from it. Where
rows are many, or the policy is tested on others afterwards (`control_risk`), thresholds of their own can save more.

Shape legend: n rows, e exits (the last is the full net), p policies, t thresholds of an exit, ascending.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynext.brief import short_repr
from dynext.errors import PolicyError
from dynext.policy.bounds import Floats
from dynext.policy.calibrate import Calibration, temperatures
from dynext.policy.confidence import Measure, check_measure, confidences
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Front:
    """Policies by cost, ascending, each right more often than all that cost less, on the rows they were drawn on.

    The static net is always among them. What they promise on other rows, `control_risk` says.
    """

    __repr__ = short_repr

    policies: tuple[Policy, ...]
    cost_p: tuple[float, ...]
    """Mean MACs as a share of the static net's."""
    right_p: tuple[float, ...]
    """Share of the rows that are right (basis of the table)."""
    static_right: float
    """The static net's share."""

    def __post_init__(self) -> None:
        kinds = {(policy.confidence, policy.temperature_e) for policy in self.policies}
        if len(kinds) != 1 or not len(self.policies) == len(self.cost_p) == len(self.right_p):
            raise PolicyError(
                f"{len(self.policies)} policies of {len(kinds)} measures and temperatures, {len(self.cost_p)} costs, "
                f"{len(self.right_p)} shares right; a front has one measure, and one of each a policy"
            )
        if any(policy.skip_rule is not None for policy in self.policies):
            raise PolicyError("policies that skip stages; a front knows of exits only, dx.choose weighs both")

    def within(self, budget: float) -> Policy:
        """The policy that is right most often for at most ``budget`` of the static net's MACs.

        Raises:
            PolicyError: none is that cheap.
        """
        affordable = [policy for policy, cost in zip(self.policies, self.cost_p, strict=True) if cost <= budget]
        if not affordable:
            raise PolicyError(
                f"budget {budget} of the static net's MACs cannot be met: the cheapest of the front costs "
                f"{self.cost_p[0]:.3f}; allow at least that, or attach earlier or cheaper exits"
            )
        return affordable[-1]

    def losing(self, max_drop: float) -> Policy:
        """The cheapest policy that is right at most ``max_drop`` less often than the static net, on these rows.

        Raises:
            PolicyError: ``max_drop`` is no share of the rows.
        """
        if not 0 <= max_drop <= 1:
            raise PolicyError(f"max_drop {max_drop}; give a share of the samples from 0 to 1, 0.01 for one point")
        least = self.static_right - max_drop
        return next(p for p, right in zip(self.policies, self.right_p, strict=True) if right >= least)


class Grid:
    """Thresholds for each early exit of a table, and what combinations of them do there.

    A policy is a number for each exit ``[e]``: i means the exit's i-th threshold (from 0, ascending), and the number
    of its thresholds means that the exit is off.

    Raises:
        PolicyError: patience, whose confidences depend on which exits run, or rows that skipped stages.
    """

    def __init__(
        self,
        table: ExitTable,
        *,
        size: int,
        temperature: Calibration | Sequence[float] | None,
        confidence: Measure,
    ) -> None:
        table.check_whole("a front")
        check_measure(confidence)
        if confidence == "patience":
            raise PolicyError("patience depends on which exits run; give another confidence, or dx.choose")
        self.table, self.measure = table, confidence
        self.temperature_e = temperatures(table, temperature)
        self.sure_ne = confidences(table.logits_nek, confidence, self.temperature_e).double().numpy()
        last = table.num_exits - 1
        self.thresholds_e = [_thresholds(self.sure_ne[:, e], size) for e in range(last)]
        reached = [
            np.searchsorted(grid_t, np.nan_to_num(self.sure_ne[:, e], nan=-1.0), side="right")
            for e, grid_t in enumerate(self.thresholds_e)
        ]
        self.reached_ne = np.stack(reached, axis=1) if last else np.zeros((len(table), 0), np.int64)
        """How many of an exit's thresholds a row reaches."""
        self.right_ne = table.right_ne.numpy()

    @property
    def off_e(self) -> Ints:
        """The number that means off, of each early exit."""
        return np.array([len(grid_t) for grid_t in self.thresholds_e], np.int64)

    def exits_pn(self, chosen_pe: Ints) -> Ints:
        """Where each row leaves under each policy."""
        exit_pn = np.full((len(chosen_pe), len(self.table)), self.table.num_exits - 1)
        for e in range(self.table.num_exits - 2, -1, -1):
            leaves_pn = self.reached_ne[:, e] > chosen_pe[:, e, None]
            exit_pn[leaves_pn] = e
        return exit_pn

    def score(self, chosen_pe: Ints) -> tuple[Floats, Floats]:
        """Cost, as a share of the static net's, and share right, of each policy."""
        exit_pn = self.exits_pn(chosen_pe)
        row_n = np.arange(len(self.table))
        macs_pe = self.macs_pe(chosen_pe)
        cost_p = np.take_along_axis(macs_pe, exit_pn, axis=1).mean(1) / max(self.table.static_macs, 1)
        return cost_p, self.right_ne[row_n, exit_pn].mean(1)

    def macs_pe(self, chosen_pe: Ints) -> Floats:
        """MACs of a row that leaves at each exit."""
        head_e = np.array(self.table.head_macs_e, np.float64)
        paid_pe = np.where(chosen_pe < self.off_e, head_e[:-1], 0.0).cumsum(1)
        paid_pe = np.concatenate([paid_pe, paid_pe[:, -1:] if paid_pe.shape[1] else np.zeros((len(paid_pe), 1))], 1)
        return paid_pe + np.array(self.table.trunk_macs_e, np.float64)

    def front(self, chosen_pe: Ints, how: str) -> Front:
        """The best of these policies and the static net."""
        chosen_pe = np.concatenate([chosen_pe, self.off_e[None]])
        cost_p, right_p = self.score(chosen_pe)
        best = undominated(cost_p, right_p)
        table = self.table
        note = f"{how} on {table.rows} (n={len(table)}), basis {table.basis}"
        return Front(
            policies=tuple(self.policy(chosen_pe[p], f"{note}: {cost_p[p]:.1%} of the static MACs.") for p in best),
            cost_p=tuple(cost_p[best].tolist()),
            right_p=tuple(right_p[best].tolist()),
            static_right=float(self.right_ne[:, -1].mean()),
        )

    def policy(self, chosen_e: Ints, note: str) -> Policy:
        """The policy of one number an exit."""
        threshold_e = [
            float(grid_t[i]) if i < len(grid_t) else None for grid_t, i in zip(self.thresholds_e, chosen_e, strict=True)
        ]
        return Policy(
            confidence=self.measure,
            threshold_e=(*threshold_e, 0.0),
            temperature_e=self.temperature_e,
            basis=self.table.basis,
            note=note,
        )


def undominated(cost_p: Floats, right_p: Floats) -> Ints:
    """Which policies no other beats in cost and share right, by cost ascending; of equals one."""
    order = np.lexsort((-right_p, cost_p))
    best_before = np.maximum.accumulate(right_p[order])
    better = np.diff(best_before, prepend=-1.0) > 0
    return order[better]


def _thresholds(sure_n: Floats, size: int) -> Floats:
    """At most ``size`` thresholds between the confidences that occur, so that no last bit decides; 0 the first."""
    value_v = np.unique(sure_n[~np.isnan(sure_n)])
    if len(value_v) > size:
        value_v = np.unique(value_v[np.linspace(0, len(value_v) - 1, size).round().astype(int)])
    between = np.float64(np.float32((value_v[:-1] + value_v[1:]) / 2))
    return np.unique(np.concatenate([np.zeros(1), between]))
