"""A budget for a whole batch: easy rows leave early, and what that saves is spent on the hard ones of the same batch.

Thresholds keep a budget on average over many rows; a plan keeps it on each batch. At each exit the least sure rows go
on, as many as what is left of the budget can pay for.

Shape legend: b rows in a batch, n rows of a table, e exits (the last is the full net).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dynext.brief import short_repr
from dynext.errors import PolicyError
from dynext.policy.confidence import confidences
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable, Outcome, outcome_of, simulate


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How to spend on a batch.

    Raises:
        PolicyError: a budget that does not even pay for every row's way to the first exit, lengths that differ, or a
            policy that skips stages.
    """

    __repr__ = short_repr

    policy: Policy
    """Whose exits run, at its temperatures and by its confidence; its thresholds play no part."""
    macs: float
    """To spend, a row on average; no batch spends more."""
    segment_macs_e: tuple[int, ...]
    """MACs of a row from the exit before that runs (or the input) up to and with each exit; 0 for one that is off."""
    onward_macs_e: tuple[float, ...]
    """What a row that goes on from each exit is expected to spend further, on average; 0 for the last."""

    def __post_init__(self) -> None:
        lengths = {self.policy.num_exits, len(self.segment_macs_e), len(self.onward_macs_e)}
        if len(lengths) != 1:
            raise PolicyError(f"a plan of {sorted(lengths)} exits; make it by dx.policies.plan_batch")
        if self.policy.skip_rule is not None:
            raise PolicyError(
                f"a batch's budget knows of exits only, and the policy skips by {self.policy.skip_rule}; give one "
                f"without keep_g"
            )
        first = next(macs for macs, on in zip(self.segment_macs_e, self.policy.enabled_e, strict=True) if on)
        if not first <= self.macs < float("inf"):  # so written that NaN is refused
            raise PolicyError(
                f"a budget of {self.macs:,.0f} MACs a sample, but the first exit that runs takes {first:,}; allow at "
                f"least that, a finite number, or attach an earlier or cheaper exit"
            )


def plan_batch(table: ExitTable, policy: Policy, *, budget: float) -> BatchPlan:
    """A plan to spend ``budget``, a share of the static net's MACs, on each batch, by what ``policy`` did on ``table``.

    From the table comes what a row that is not sure enough at an exit spends further on. A policy that was chosen for
    about this budget is best.

    Raises:
        PolicyError: a budget that does not pay for every row's way to the first exit, or a policy for another number
            of exits.
    """
    outcome = simulate(table, policy)
    macs_e = table.macs_e(policy.enabled_e)
    segments, onward, before = [], [], 0
    for e, on in enumerate(policy.enabled_e):
        later_n = outcome.macs_n[outcome.exit_n > e].double()
        further = float(later_n.mean()) - macs_e[e] if len(later_n) else float(macs_e[-1] - macs_e[e])
        onward.append(further if on and e < table.num_exits - 1 else 0.0)
        segments.append(macs_e[e] - before if on else 0)
        before = macs_e[e] if on else before
    return BatchPlan(
        policy=policy,
        macs=budget * table.static_macs,
        segment_macs_e=tuple(segments),
        onward_macs_e=tuple(onward),
    )


def going_on(sure_b: Tensor, left: float, onward: float, next_macs: int) -> Tensor:
    """The rows that go on from an exit, as positions in order: the least sure ones that ``left`` MACs can pay for.

    ``onward`` is what one of them is expected to spend; never so many go on that the way to the next exit,
    ``next_macs``, cannot be paid. A row whose confidence is NaN is the least sure of all.
    """
    affordable = int(left // max(onward, next_macs, 1))
    order = torch.argsort(sure_b.nan_to_num(-1.0), stable=True)
    return order[:affordable].sort().values


def simulate_batch(table: ExitTable, plan: BatchPlan) -> Outcome:
    """What the plan does if all rows of ``table`` are one batch."""
    policy = plan.policy
    policy.check_exits(table.num_exits)
    table.check_whole("a batch's budget")
    conf_ne = confidences(table.logits_nek, policy.confidence, policy.temperature_e, policy.enabled_e)
    exit_n = torch.zeros(len(table), dtype=torch.int64)
    waiting = torch.arange(len(table))
    left = plan.macs * len(table)
    for e, next_macs in running_exits(plan):
        left -= plan.segment_macs_e[e] * len(waiting)
        exit_n[waiting] = e
        if next_macs is not None:
            waiting = waiting[going_on(conf_ne[waiting, e], left, plan.onward_macs_e[e], next_macs)]
    return outcome_of(table, exit_n, policy)


def running_exits(plan: BatchPlan) -> list[tuple[int, int | None]]:
    """The exits that run, each with the MACs from there to the next; ``None`` behind the last."""
    on = [e for e, enabled in enumerate(plan.policy.enabled_e) if enabled]
    return [*((e, plan.segment_macs_e[later]) for e, later in pairwise(on)), (on[-1], None)]
