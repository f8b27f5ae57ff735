"""Choose when to stop: from tables to a policy, with the uncertainty of few rows counted in.

Shape legend: e exits (the last is the full net), t thresholds, g gated stages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import get_args

import numpy as np

from dynext.errors import PolicyError
from dynext.policy.calibrate import Calibration, temperatures
from dynext.policy.candidates import Candidate, Candidates, Scorer, cautious_path
from dynext.policy.choice_note import choice_note
from dynext.policy.confidence import Measure, check_measure
from dynext.policy.limits import Limits
from dynext.policy.policy import Policy
from dynext.policy.rule import PlainRule, Rule, SafeRule, rule_of
from dynext.policy.sweep import Sweeper, exit_sets, threshold_grid
from dynext.policy.table import ExitTable
from dynext.policy.timed_table import NANOSECONDS, clocked
from dynext.policy.unproven import (
    Refusal,
    SkipRule,
    WhenUnsafe,
    counted,
    first_tests,
    least_risk,
    unsupported,
)

DEFAULT_MAX_DROP = 0.01


def choose(  # noqa: PLR0913  what is asked for, by which measure and rule, and what to do where nothing meets it
    table: ExitTable | Sequence[ExitTable],
    *,
    budget: float | None = None,
    budget_ms: float | None = None,
    max_drop: float | None = None,
    temperature: Calibration | Sequence[float] | None = None,
    confidence: Measure = "max_probability",
    rule: Rule = "safe",
    overhead: float = 0.0,
    when_unsafe: WhenUnsafe = "static",
) -> Policy:
    """The policy that saves most within a loss, or loses least within a budget; with neither, a loss of 0.01.

    Tried are one threshold shared by the exits that are on, at up to 200 values, for every set of exits. Of several
    tables the worst case counts, and their mean cost; tables that were collected with different skip rules are
    alternatives, with exits or without. "No exit is safe" is an answer: `Policy.never`, whose note says which test
    failed first and why, how many samples would be enough, and which ``max_drop`` would pass.

    Args:
        table: the rows to choose by, the same ones for each skip rule. Never those that the result is then reported on.
        budget: most MACs allowed, as a share of the static net's. Alone: the largest share of right answers within
            it; a larger budget never gives fewer right answers nor costs less.
        budget_ms: the same in milliseconds a row, by the stage times of this machine that the table holds
            (`dx.measure`); costs are then times everywhere.
        max_drop: most that may be lost, as a share of the rows (0.01 is a point). Alone: the cheapest within it.
            With a budget: the same, and the note says if the budget is not met.
        temperature: of each exit, or a calibration; 1 without it.
        confidence: one of `CONFIDENCES` or a registered name, what gates have learned, or a function
            ``logits [n k] -> [n]`` in [0, 1] (`dynext.policy.foreign_confidence`).
        rule: ``"safe"`` scores by confidence bounds, and takes a policy only if every more cautious one passes too;
            ``"plain"`` scores by what was observed, which on few rows promises too much. With settings of their own:
            ``dx.policies.SafeRule(delta=0.1)``, ``dx.policies.PlainRule(risk="disagreement")``.
        overhead: price of every early exit that a row passes beyond its MACs (small layers and the decision take longer
            than their MACs say), as a share of the static net. Within a loss the least price is taken instead of the
            fewest MACs; budgets and the costs that are reported stay MACs.
        when_unsafe: what to give where no policy is shown to keep within the loss. ``"static"``: the static net.
            ``"least"``: what the least ``max_drop`` that passes would give, and where too few samples leave for any,
            the most cautious use of an exit that saves; its note begins with "not proven".

    The safe rule within a loss: all thresholds of all sets of exits, ordered by how many wrong answers the exits' own
    probabilities expect, those that cost more than an earlier one left out. Down this path each policy is tested at
    ``delta``; the last before the first failure is taken. The path comes from confidences and costs alone, not from
    who was right, so that testing in its order needs no correction for the many policies. Several tables are of rows
    that differ in kind, where one exit may be wrong and sure of it, and would end the path at its beginning: then there
    is a path for each exit to begin with, the earlier ones off, and the paths share ``delta``. For the same
    reason skipping has a path of its own, and so has skipping with exits.

    Source: fixed-sequence testing, Angelopoulos et al. 2021, arXiv:2110.01052, down a cost-risk front,
    Laufer-Goldshtein et al., ICLR 2023, arXiv:2210.07913 (there drawn on other rows; ours by expected errors). For
    exits: Jazbec et al., NeurIPS 2024, arXiv:2405.20915. Bounds are Clopper-Pearson's. Temperatures that were fitted
    on the same rows bend the path a little towards them.

    Raises:
        PolicyError: tables that do not belong together, figures out of range, or a budget that no policy meets.
    """
    if budget is not None and budget_ms is not None:
        raise PolicyError(f"budget {budget} and budget_ms {budget_ms}; give one of them")
    if when_unsafe not in get_args(WhenUnsafe):
        raise PolicyError(f"when_unsafe={when_unsafe!r}; give 'static' or 'least'")
    tables = [table] if isinstance(table, ExitTable) else list(table)
    tables = tables if budget_ms is None else [clocked(t) for t in tables]
    _check_alike(tables)
    return choose_within(
        tables,
        _limits(tables[0].static_macs, budget, budget_ms, max_drop),
        temperature=temperature,
        confidence=confidence,
        rule=rule_of(rule),
        overhead=overhead,
        when_unsafe=when_unsafe,
    )


def choose_within(
    tables: Sequence[ExitTable],
    limits: Limits,
    *,
    temperature: Calibration | Sequence[float] | None,
    confidence: Measure = "max_probability",
    rule: SafeRule | PlainRule | None = None,
    overhead: float = 0.0,
    when_unsafe: WhenUnsafe = "static",
) -> Policy:
    """`choose` for limits that say themselves what of a loss is kept back."""
    rule = SafeRule() if rule is None else rule
    check_measure(confidence)
    _check_alike(tables)
    by_skip_rule = _by_skip_rule(tables)
    firsts = _first_exits(by_skip_rule, rule)
    num_paths = len(firsts) + 2 * any(keep_g is not None for keep_g in by_skip_rule)
    scorer = Scorer(rule=rule.sharing(num_paths), overhead=overhead)
    temperature_e = temperatures(tables[0], temperature)
    grid_t = threshold_grid(tables, confidence, temperature_e)
    sweepers = {
        keep_g: [Sweeper(t, confidence, temperature_e, grid_t, rule.risk) for t in alike]
        for keep_g, alike in by_skip_rule.items()
    }
    candidates = _scored(scorer, sweepers)
    static = scorer.static([*sweepers.values()][-1])  # the full net is the same under every skip rule
    refusal = None
    if limits.max_drop is not None:
        paths, safe = _paths(candidates, firsts), isinstance(rule, SafeRule)
        chosen = _cheapest(paths, static.at(0), limits.max_drop, safe=safe)
        if chosen == static.at(0):
            refusal = _refusal(paths, sweepers, scorer.rule, limits, leniently=when_unsafe == "least")
        if when_unsafe == "least" and refusal is not None:
            chosen = refusal.alternative
    elif limits.budget is not None:
        chosen = _best([static, *candidates], limits.budget, limits)
    threshold = float(grid_t[chosen.t])
    return Policy(
        confidence=confidence,
        threshold_e=(*(threshold if e in chosen.on else None for e in range(tables[0].num_exits - 1)), 0.0),
        temperature_e=temperature_e,
        keep_g=chosen.keep_g,
        basis=tables[0].basis,
        note=choice_note(next(iter(by_skip_rule.values())), rule, limits, chosen, refusal, scorer.rule),
    )


def _refusal(
    paths: Sequence[Sequence[Candidates]],
    sweepers: Mapping[SkipRule, Sequence[Sweeper]],
    rule: SafeRule | PlainRule,
    limits: Limits,
    *,
    leniently: bool,
) -> Refusal | None:
    """Why nothing was taken; ``None`` where nothing saves, with the support that the rule wants or, ``leniently``,
    with any."""
    safe = isinstance(rule, SafeRule)
    tests = first_tests(paths, safe=safe)
    supported = bool(tests)
    if not tests and leniently:
        paths = unsupported(paths)
        tests = first_tests(paths, safe=safe)
    if not tests:
        return None
    first = min(tests, key=lambda candidate: (candidate.risk, candidate.price))
    lost, num_rows, enough = counted(first, sweepers, rule, limits)
    later = least_risk([group for groups in paths for group in groups]) if safe else None
    asked = limits.to_ask(first.risk) if supported else None
    return Refusal(
        first=first,
        lost=lost,
        num_rows=num_rows,
        later=later if later is not None and later <= (limits.max_drop or 0.0) else None,
        enough=enough,
        max_drop=asked,
        alternative=_cheapest(paths, first, first.risk if asked is None else limits.allowed(asked), safe=safe),
        supported=supported,
        skipping=any(keep_g is not None for keep_g in sweepers),
    )


def _check_alike(tables: Sequence[ExitTable]) -> None:
    if not tables:
        raise PolicyError("no table to choose by; give at least one")
    kinds = {(t.trunk_macs_e, t.head_macs_e, t.num_classes, t.basis) for t in tables}
    if len(kinds) > 1:
        raise PolicyError(f"{len(tables)} tables of {len(kinds)} kinds; they must share costs, classes and basis")


def _limits(static_cost: int, budget: float | None, budget_ms: float | None, max_drop: float | None) -> Limits:
    """What was given, or the usual loss; ``static_cost`` is in nanoseconds where milliseconds were given."""
    if budget_ms is None:
        usual = DEFAULT_MAX_DROP if budget is None else None
        return Limits(budget=budget, max_drop=usual if max_drop is None else max_drop, static_ms=None)
    share = budget_ms * NANOSECONDS / static_cost
    return Limits(budget=share, max_drop=max_drop, static_ms=static_cost / NANOSECONDS)


def _by_skip_rule(tables: Sequence[ExitTable]) -> dict[SkipRule, list[ExitTable]]:
    """The tables of each skip rule, which must be as many."""
    groups: dict[SkipRule, list[ExitTable]] = {}
    for table in tables:
        groups.setdefault(table.keep_g, []).append(table)
    if len({len(group) for group in groups.values()}) > 1:
        counts = ", ".join(f"{len(group)} for {rule}" for rule, group in groups.items())
        raise PolicyError(f"skip rules with different numbers of tables ({counts}); collect the same samples for each")
    return groups


def _first_exits(by_skip_rule: Mapping[SkipRule, Sequence[ExitTable]], rule: SafeRule | PlainRule) -> Sequence[int]:
    """The exits to begin a path of the safe rule with: all of them where tables are of rows that differ in kind."""
    alike = next(iter(by_skip_rule.values()))
    return range(alike[0].num_exits - 1) if len(alike) > 1 and isinstance(rule, SafeRule) else range(1)


def _scored(scorer: Scorer, sweepers: Mapping[SkipRule, Sequence[Sweeper]]) -> list[Candidates]:
    """Every set of exits under every skip rule; no exit at all is one, too, where stages are skipped."""
    candidates = []
    for keep_g, alike in sweepers.items():
        sets = [*([] if keep_g is None else [()]), *exit_sets(alike[0].table.num_exits - 1)]
        candidates += [scorer.score(on, [sweeper.sweep(on) for sweeper in alike]) for on in sets]
    return candidates


def _paths(candidates: Sequence[Candidates], firsts: Sequence[int]) -> list[list[Candidates]]:
    """What is tested down each path: for each of ``firsts`` the sets of exits that begin there or later, then skipping
    without exits and with them."""
    exits = [group for group in candidates if group.keep_g is None]
    skipping = [group for group in candidates if group.keep_g is not None]
    return [
        *([group for group in exits if group.on[0] >= first] for first in firsts),
        [group for group in skipping if not group.on],
        [group for group in skipping if group.on],
    ]


def _cheapest(paths: Sequence[Sequence[Candidates]], static: Candidate, max_drop: float, *, safe: bool) -> Candidate:
    """The least price among what may be taken, the static net always among it; equal prices go to the lower risk."""
    within = [static]
    for path in paths:
        if safe:
            within += takewhile(lambda candidate: candidate.risk <= max_drop, cautious_path(path))
            continue
        for group in path:
            allowed = np.flatnonzero(group.risk_t <= max_drop)
            if len(allowed):
                order = np.lexsort((group.risk_t[allowed], group.price_t[allowed]))
                within.append(group.at(int(allowed[order[0]])))
    return min(within, key=lambda candidate: (candidate.price, candidate.risk))


def _best(candidates: Sequence[Candidates], budget: float, limits: Limits) -> Candidate:
    """The most right answers within the budget; of equals the cheaper, so that cost is monotone in the budget."""
    within, cheapest = [], 1.0
    for group in candidates:
        supported = np.flatnonzero(group.supported_t)
        if not len(supported):
            continue
        cheapest = min(cheapest, float(group.cost_t[supported].min()))
        affordable = supported[group.cost_t[supported] <= budget]
        if len(affordable):
            order = np.lexsort((group.cost_t[affordable], -group.right_t[affordable]))
            within.append(group.at(int(affordable[order[0]])))
    if not within:
        least = f"{cheapest:.3f}" if limits.static_ms is None else f"{cheapest * limits.static_ms:.4g} ms a sample"
        of_what = " of the static net's MACs" if limits.static_ms is None else ""
        raise PolicyError(
            f"{limits.shown(budget)}{of_what} cannot be met: the cheapest within reach is {least}; allow at least "
            f"that, or attach earlier or cheaper exits"
        )
    return min(within, key=lambda candidate: (-candidate.right, candidate.cost))
