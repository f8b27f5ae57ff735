"""Thresholds chosen with care: from a few real samples, or from synthesized ones as far as these can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from dynext.brief import short_repr
from dynext.net.collect import collect
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.calibrate import calibrate as temperatures
from dynext.policy.choose import DEFAULT_MAX_DROP, choose_within
from dynext.policy.limits import Limits
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable
from dynext.policy.unproven import WhenUnsafe
from dynext.train.drift import lost_by_drift
from dynext.types import Source
from dynext.zeroshot.bank import Bank
from dynext.zeroshot.shift import Shift, bn_distance_of, estimate_shift
from dynext.zeroshot.skip import Skipper
from dynext.zeroshot.synth.method import Method

CAUTION = 0.75
"""Share of the allowed loss that thresholds may use up on the samples they are chosen on. The rest is for samples
unlike these: calibration images are often leftovers of the training set, on which exits and full net agree more.
Cross-fitted tables may use up all of it: the exits that answer there saw fewer samples than those that will run, and do
worse.
"""

OVERHEAD = 0.03
"""Price of passing an early exit beyond its MACs, as a share of the static net: what a head of the bundled net takes at
batch 64 on one thread, where its MACs are .011; at batch 1 it takes .10 (`dx.measure`). A constant, for the same seed
to give the same policy on every machine."""

ROWS = 2048
"""Synthesized samples of each kind that thresholds are chosen on when there is no real sample; at most."""

PER_SAMPLE = 4
"""For each sample that exits are distilled on: judging a small trial must not cost more than the trial."""

OTHER_METHOD = "leaves"
"""The second kind: thresholds must hold on samples that were not made the way the exits' own were."""


def choose_cautiously(
    tables: Sequence[ExitTable],
    *,
    max_drop: float | None = None,
    budget: float | None = None,
    caution: float = CAUTION,
    spent: float = 0.0,
    overhead: float = OVERHEAD,
    when_unsafe: WhenUnsafe = "static",
) -> Policy:
    """`choose` at calibrated temperatures (those of the first table), within ``caution`` times the allowed loss.

    Args:
        spent: what the net has lost already against the static one, as a share of the samples; taken off.
    """
    if max_drop is None and budget is None:
        max_drop = DEFAULT_MAX_DROP
    limits = Limits.kept_back(budget=budget, max_drop=max_drop, share=caution, spent=spent)
    return choose_within(
        tables, limits, temperature=temperatures(tables[0]), overhead=overhead, when_unsafe=when_unsafe
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Unseen:
    """A policy chosen without a real sample, the first table that it was chosen on, and the estimated shift."""

    __repr__ = short_repr

    policy: Policy
    table: ExitTable
    shift: Shift


def skip_tables(skipper: Skipper, teacher: nn.Module, source: Source, rows: str) -> list[ExitTable]:
    """What each skip rule worth trying does to the samples of ``source``, against ``teacher``."""
    return [collect(skipper.net, source, keep=rule, static=teacher, rows=rows) for rule in skipper.rules]


def table_under(policy: Policy, tables: Sequence[ExitTable]) -> ExitTable:
    """The first table whose samples skipped as ``policy`` says."""
    return next(table for table in tables if table.keep_g == policy.skip_rule)


def rows_to_judge(distilled_on: int) -> int:
    """How many synthesized samples of each kind thresholds are chosen on."""
    return min(ROWS, PER_SAMPLE * distilled_on)


def choose_unseen(
    net: DynamicNet,
    teacher: nn.Module,
    synthesized: Callable[[Method, int], Bank],
    method: Method,
    *,
    skipper: Skipper | None = None,
    max_drop: float | None = None,
    budget: float | None = None,
    when_unsafe: WhenUnsafe = "static",
) -> Unseen:
    """Thresholds from samples of two kinds, which hold on the worse of the two, as cautious as their shift demands.

    An exit on which the kinds contradict each other stays off. Where the shift is too large nobody leaves early, and
    the policy's note says why; unless a budget was asked for, which is a wish about cost. What a trunk that was trained
    has lost on these samples is taken off what may be lost.

    Args:
        synthesized: samples of a method, so many or fewer (`rows_to_judge`).
        method: the one that made the samples which the exits were distilled on.
        skipper: the same net after it learned to skip: its skip rules are tried beside not skipping.
        when_unsafe: ``"least"`` chooses on these samples however large the shift is, and the note says so.
    """
    kinds: list[Method] = [method, "fitted" if method == OTHER_METHOD else OTHER_METHOD]
    plain, skipping, distances, spent = [], [], [], 0.0
    for kind in kinds:
        bank = synthesized(kind, ROWS)
        told = f"{len(bank):,} synthesized samples ({bank.provenance.method})"
        plain.append(collect(net, bank, rows=told))
        skipping += [] if skipper is None else skip_tables(skipper, teacher, bank, told)
        distances.append(bn_distance_of(teacher, bank, rows=min(ROWS, len(bank)) // 4))
        spent = max(spent, lost_by_drift(net, teacher, bank))
    known = [distance for distance in distances if distance is not None]
    allowed = DEFAULT_MAX_DROP if max_drop is None else max_drop
    shift = estimate_shift(plain, known or None, max_drop=allowed, temperature=temperatures(plain[0]))
    tables = [*plain, *skipping]
    if shift.refused and budget is None and when_unsafe == "static":
        policy = replace(Policy.never(net.num_exits), basis="teacher", note=f"no exit is safe: {shift}.")
    else:
        refused = shift.refused and budget is None
        caution = CAUTION if refused or budget is not None else min(CAUTION, shift.caution)
        # Far fewer synthesized samples leave than real ones would: what passing an exit costs cannot be weighed against
        # them.
        policy = choose_cautiously(
            tables,
            max_drop=max_drop,
            budget=budget,
            caution=caution,
            spent=spent,
            overhead=0.0,
            when_unsafe=when_unsafe,
        )
        unproven = "not proven: " if refused and not policy.note.startswith("not proven") else ""
        policy = replace(policy, note=f"{unproven}{policy.note} Shift of synthesized samples: {shift}.")
    return Unseen(policy=policy, table=table_under(policy, tables), shift=shift)
