"""Alignment moves confidences: what the old policy does then, and thresholds and temperatures chosen anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dynext.brief import short_repr
from dynext.data.given import takes_data
from dynext.net.collect import collect
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.calibrate import calibrate
from dynext.policy.choose import DEFAULT_MAX_DROP, choose
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable
from dynext.reporting.report import Report, report
from dynext.types import Data, Source
from dynext.usual_modes import in_usual_modes


@dataclass(frozen=True, kw_only=True, eq=False)
class Rechosen:
    """A policy for the aligned net, and three reports on the same samples."""

    __repr__ = short_repr

    policy: Policy
    """Thresholds and temperatures chosen anew."""
    table: ExitTable
    """The aligned net's, that they were chosen on."""
    before: Report
    """The net before, at the policy it had."""
    stale: Report
    """The aligned net at that old policy: what would happen if nobody chose anew."""
    after: Report
    """The aligned net at its own policy."""

    def __str__(self) -> str:
        parts = (
            ("Before alignment, at the policy of then", self.before),
            ("Aligned, at that old policy", self.stale),
            ("Aligned, thresholds and temperatures chosen anew", self.after),
        )
        return "\n\n".join(f"{title}:\n\n{part}" for title, part in parts)

    def to_dict(self) -> dict[str, Any]:
        """JSON types; the table is left out."""
        return {
            "policy": self.policy.to_dict(),
            "before": self.before.to_dict(),
            "stale": self.stale.to_dict(),
            "after": self.after.to_dict(),
        }


@in_usual_modes
@takes_data("chosen_on", "judged_on")
def rechoose(
    before: DynamicNet,
    aligned: DynamicNet,
    policy: Policy,
    chosen_on: Data,
    *,
    judged_on: Data | None = None,
    max_drop: float | None = None,
    budget: float | None = None,
    rows: str | None = None,
) -> Rechosen:
    """Temperatures and thresholds of the aligned net, and what that changes.

    Args:
        policy: the one that went with the net ``before``.
        chosen_on: samples to choose by, unlabelled or not.
        judged_on: other samples for the three reports; without it these are on the samples chosen by, and promise too
            much.
        max_drop: accuracy that may be lost, a point without it; ``budget`` is a share of the MACs. As in
            `dynext.choose`.
        rows: what the samples to choose by are, in words.

    Raises:
        PolicyError: a policy for another number of exits, or a budget that nothing meets.
        SourceError: no samples, or samples of another shape than the model expects.
    """
    table = collect(aligned, chosen_on, keep=policy.skip_rule, rows=rows)
    if max_drop is None and budget is None:
        max_drop = DEFAULT_MAX_DROP
    chosen = choose(table, max_drop=max_drop, budget=budget, temperature=calibrate(table))
    return compared(before, aligned, policy, chosen, table, chosen_on if judged_on is None else judged_on)


def compared(
    before: DynamicNet, aligned: DynamicNet, old: Policy, new: Policy, table: ExitTable, judged_on: Source
) -> Rechosen:
    """Three reports on the same samples, where the new policy is known already, with the table that it was chosen on.

    Raises:
        PolicyError: a policy for another number of exits.
        SourceError: no samples, or samples of another shape than the models expect.
    """
    then, now = (collect(net, judged_on, keep=old.skip_rule) for net in (before, aligned))
    renewed = now if new.skip_rule == old.skip_rule else collect(aligned, judged_on, keep=new.skip_rule)
    return Rechosen(
        policy=new, table=table, before=report(then, old), stale=report(now, old), after=report(renewed, new)
    )
