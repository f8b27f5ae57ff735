"""What a policy does on a table, for people and for programs.

Shape legend: e exits (the last is the full net).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from dynext.brief import short_repr
from dynext.errors import PolicyError
from dynext.policy.bounds import lower_bound
from dynext.policy.calibrate import ece
from dynext.policy.foreign_confidence import measure_name
from dynext.policy.fronts.shared import shared_front
from dynext.policy.policy import Policy
from dynext.policy.sweep import Sweeper
from dynext.policy.table import ExitTable, Outcome, oracle, simulate
from dynext.text_table import text_table
from dynext.types import Basis

DELTA = 0.05
"""How often a bound of a report may be wrong."""


@dataclass(frozen=True, kw_only=True)
class ExitReport:
    """One exit's line. Right means: like the label, or like the full net, as the report's ``measure`` says."""

    __repr__ = short_repr

    exit: int
    after: str
    on: bool
    threshold: float | None
    temperature: float
    macs: int
    """Of a sample that leaves here, every head run on the way included."""
    macs_share: float
    """The same as a share of the static net's."""
    trunk_share: float
    """Depth: the stages alone, as a share of the static net's MACs."""
    leaving: float
    """Share of the samples that leave here."""
    right_of_leaving: float | None
    """Share of those that are right; ``None`` when nobody leaves here."""
    right_of_all: float
    """Share of all samples that would be right if everybody left here."""
    ece: float | None
    """Expected calibration error at the policy's temperature; ``None`` for the full net against its own answers."""


class CurvePoint(NamedTuple):
    """One way to set the thresholds."""

    macs: float
    """Mean MACs of a sample, as a share of the static net's."""
    right: float
    """Share of the samples answered right, as the report's ``measure`` says."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A policy on a table: one line an exit, then the totals. ``str`` gives it as text, ``to_dict`` as JSON types."""

    exits: tuple[ExitReport, ...]
    rows: str
    num_rows: int
    basis: Basis
    synthetic: bool
    confidence: str
    static_macs: int
    macs: float
    saved: float
    """Share of the static net's MACs that is saved, per sample on average, heads counted."""
    agreement: float
    """Share of the samples answered like the full net."""
    agreement_at_least: float
    """Of samples like these, with 95 % confidence (Clopper-Pearson)."""
    drop: float | None
    """Accuracy that the full net's own probabilities say is lost by leaving early or skipping; ``None`` where labels
    know."""
    drop_at_most: float | None
    """On samples like these, with 95 % confidence; as `choose` bounds it."""
    accuracy: float | None
    """Share of the samples answered like their label; ``None`` without labels and for synthesized samples."""
    static_accuracy: float | None
    oracle_saved: float
    oracle_right: float
    """What the best exit rule imaginable would save on these samples, and how often it would be right."""
    static_ms: float | None
    ms: float | None
    """Predicted from measured stage times at batch 1."""
    note: str
    """How the policy was chosen."""
    kept: tuple[float, ...] | None = None
    """Share of the samples that run each gated stage; ``None`` where nothing is skipped."""
    paths: int | None = None
    """How many different sets of stages the samples run."""

    table: ExitTable | None = field(default=None, repr=False, compare=False)
    """What it is about, for `curve`; not part of `to_dict`."""
    policy: Policy | None = field(default=None, repr=False, compare=False)

    @property
    def right(self) -> float:
        """Share of all samples answered right, as `measure` says: the accuracy, or the agreement."""
        return sum(line.leaving * (line.right_of_leaving or 0.0) for line in self.exits)

    @cached_property
    def curve(self) -> tuple[CurvePoint, ...]:
        """What other thresholds would give on these samples, at this policy's confidence and temperatures, cheapest
        first. Picked on the very samples that it is drawn from: a picture, not a promise.

        Raises:
            PolicyError: a report that was not made by `dynext.report` just now, and has no table.
        """
        if self.table is None or self.policy is None:
            raise PolicyError(
                "the report has no table to draw a curve from; make it anew with dx.report(table, policy)"
            )
        cost_p, right_p = shared_front(self.table, self.policy.confidence, self.policy.temperature_e)
        return tuple(CurvePoint(*point) for point in zip(cost_p.tolist(), right_p.tolist(), strict=True))

    @property
    def measure(self) -> str:
        """What "right" means here."""
        return measure_in_words(self.basis, self.synthetic)

    def to_dict(self) -> dict[str, Any]:
        plain = {one.name: getattr(self, one.name) for one in fields(self) if one.repr}
        return {**plain, "exits": [asdict(line) for line in self.exits], "measure": self.measure}

    def __repr__(self) -> str:
        return (
            f"Report({self.right:.2%} {self.measure}, {self.saved:.1%} of the MACs saved, {len(self.exits)} exits, "
            f"{self.num_rows:,} samples; print it for all)"
        )

    def __str__(self) -> str:
        titles, *lines = text_table([self.titles, *map(cells, self.exits)], left=(1,)).splitlines()
        return "\n".join([*self._head(), titles, "-" * len(titles), *lines, *self._totals()])

    @property
    def titles(self) -> tuple[str, ...]:
        """Of the columns that `cells` fills."""
        right = "right" if self.accuracy is not None else "agree"
        return ("exit", "after", "depth", "MACs", "of static", "threshold", "leave", right, f"{right}, all", "T", "ECE")

    def _head(self) -> list[str]:
        return [
            f"Samples: {self.rows} (n={self.num_rows:,}). Judged by {self.measure} (basis: {self.basis}).",
            f"A sample leaves at the first exit whose confidence ({self.confidence}) reaches its threshold.",
            f"{self.titles[7]}: share of the samples that leave there; {self.titles[8]}: if every sample left there.",
            "",
        ]

    def _totals(self) -> list[str]:
        saved = f"{self.saved:.1%} of the MACs saved" if self.saved >= 0 else f"{-self.saved:.1%} more MACs spent"
        lines = ["", f"On average {self.macs / 1e6:,.2f} M of {self.static_macs / 1e6:,.2f} M MACs: {saved}."]
        if self.kept is not None:
            each = ", ".join(f"{share:.0%}" for share in self.kept)
            lines.append(
                f"Of {len(self.kept)} stages that may be skipped a sample runs {sum(self.kept):.1f} on its way to the "
                f"end ({each}); {self.paths} different paths."
            )
        if self.ms is not None and self.static_ms is not None:
            lines.append(
                f"By measured stage times {self.ms:.2f} ms against {self.static_ms:.2f} ms a sample, one at a time."
            )
        lines += self._right_answers()
        lines.append(
            f"An oracle that sends each sample to the cheapest exit that is right would save {self.oracle_saved:.1%} "
            f"at {self.oracle_right:.2%}."
        )
        return [*lines, *([f"Policy: {self.note}"] if self.note else [])]

    def _right_answers(self) -> list[str]:
        if self.accuracy is not None and self.static_accuracy is not None:
            difference = self.accuracy - self.static_accuracy
            against = f"the static net {self.static_accuracy:.2%} ({difference:+.2%})"
            return [f"Accuracy {self.accuracy:.2%}, {against}; agreement with it {self.agreement:.2%}."]
        where = " on synthesized samples" if self.synthetic else ""
        at_least = f"on more such samples at least {self.agreement_at_least:.2%} (95 % confidence)"
        lines = [f"Agreement with the full net{where}: {self.agreement:.2%}, {at_least}."]
        if self.drop is not None and self.drop_at_most is not None:
            lines.append(
                f"Weighing each other answer by the full net's own probabilities, {100 * self.drop:.2f} points "
                f"are lost, at most {100 * self.drop_at_most:.2f}."
            )
        return lines


def measure_in_words(basis: Basis, synthetic: bool) -> str:
    """The share of right answers under its name: agreement is never called accuracy, synthesized samples are named."""
    if basis == "teacher":
        name = "agreement with the full net"
    else:
        name = "agreement with their labels" if synthetic else "accuracy"
    return f"{name} on synthesized samples" if synthetic else name


def report(table: ExitTable, policy: Policy) -> Report:
    """What ``policy`` does on ``table``. Give samples that the policy was not chosen on.

    Raises:
        PolicyError: the policy is for another number of exits, or skips by another rule than the table's samples.
    """
    outcome, best = simulate(table, policy), oracle(table)
    labelled = table.basis == "labels" and not table.synthetic
    drop, drop_at_most = (None, None) if table.basis == "labels" else _drop(table, policy, outcome)
    agreeing = round(outcome.agreement * len(table))
    return Report(
        exits=tuple(_exit_report(table, policy, outcome, e) for e in range(table.num_exits)),
        rows=table.rows,
        num_rows=len(table),
        basis=table.basis,
        synthetic=table.synthetic,
        confidence=measure_name(policy.confidence),
        static_macs=table.static_macs,
        macs=outcome.macs,
        saved=outcome.saved,
        agreement=outcome.agreement,
        agreement_at_least=float(lower_bound(agreeing, len(table), DELTA)),
        drop=drop,
        drop_at_most=drop_at_most,
        accuracy=outcome.accuracy if labelled else None,
        static_accuracy=float(table.full_right_n.double().mean()) if labelled else None,
        oracle_saved=best.saved,
        oracle_right=float(best.right_n.double().mean()),
        static_ms=None if table.trunk_ms_e is None else table.trunk_ms_e[-1],
        ms=outcome.ms,
        note=policy.note,
        kept=None if table.skipped is None else table.skipped.kept_g,
        paths=None if table.skipped is None else table.skipped.num_paths,
        table=table,
        policy=policy,
    )


def _exit_report(table: ExitTable, policy: Policy, outcome: Outcome, e: int) -> ExitReport:
    leaving_n = outcome.exit_n == e
    macs = table.macs_e(policy.enabled_e)[e]
    is_full_net = e == table.num_exits - 1 and table.skipped is None
    return ExitReport(
        exit=e,
        after=table.name_e[e],
        on=policy.enabled_e[e],
        threshold=policy.threshold_e[e],
        temperature=policy.temperature_e[e],
        macs=macs,
        macs_share=macs / max(table.static_macs, 1),
        trunk_share=table.trunk_macs_e[e] / max(table.static_macs, 1),
        leaving=outcome.share_e[e],
        right_of_leaving=float(outcome.right_n[leaving_n].double().mean()) if leaving_n.any() else None,
        right_of_all=float(table.right_ne[:, e].double().mean()),
        ece=None if is_full_net and table.basis == "teacher" else _number(ece(table, e, policy.temperature_e[e])),
    )


def _drop(table: ExitTable, policy: Policy, outcome: Outcome) -> tuple[float, float]:
    """What leaving early and skipping lose by the full net's own probabilities, and a bound."""
    on = [e for e in range(table.num_exits - 1) if policy.enabled_e[e]]
    if not on and table.skipped is None:
        return 0.0, 0.0
    sweeper = Sweeper(table, policy.confidence, policy.temperature_e, torch.zeros(1), "drop")
    return sweeper.drop(np.asarray(outcome.exit_n), on, DELTA)


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def cells(line: ExitReport) -> tuple[str, ...]:
    """One exit's line of the table, as text."""
    here = (str(line.exit), line.after, f"{line.trunk_share:.0%}")
    alone = (f"{line.right_of_all:.2%}", f"{line.temperature:.2f}", "-" if line.ece is None else f"{line.ece:.3f}")
    if not line.on:
        return (*here, "-", "-", "off", "-", "-", *alone)
    right = "-" if line.right_of_leaving is None else f"{line.right_of_leaving:.2%}"
    threshold = "all" if line.threshold == 0 else f"{line.threshold:.3f}"
    return (
        *here,
        f"{line.macs / 1e6:,.2f} M",
        f"{line.macs_share:.0%}",
        threshold,
        f"{line.leaving:.1%}",
        right,
        *alone,
    )
