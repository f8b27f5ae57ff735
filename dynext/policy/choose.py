"""Choose when to stop: from tables to a policy, with the uncertainty of few rows counted in.

Shape legend: e exits (the last is the full net), t thresholds, g gated stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from torch import Tensor

from dynext.errors import PolicyError
from dynext.policy.calibrate import Calibration
from dynext.policy.candidates import Judge, Rule, Verdict, cautious_path, static_net
from dynext.policy.confidence import Measure, check_measure
from dynext.policy.policy import Policy
from dynext.policy.sweep import Risk, Sweeper, exit_sets, threshold_grid
from dynext.policy.table import ExitTable
from dynext.policy.timed_table import NANOSECONDS, clocked

DEFAULT_MAX_DROP = 0.01


def choose(
    table: ExitTable | Sequence[ExitTable],
    *,
    budget: float | None = None,
    budget_ms: float | None = None,
    max_drop: float | None = None,
    temperature: Calibration | Sequence[float] | None = None,
    confidence: Measure = "max_probability",
    rule: Rule = "safe",
    delta: float = 0.05,
    min_support: int = 20,
    risk: Risk = "drop",
    overhead: float = 0.0,
) -> Policy:
    """The policy that saves most within a loss, or loses least within a budget; with neither, a loss of 0.01.

    Tried are one threshold shared by the exits that are on, at up to 200 values, for every set of exits. Of several
    tables the worst case counts, and their mean cost; tables that were collected with different skip rules are
    alternatives, with exits or without. "No exit is safe" is an answer: `Policy.never`, whose note says so.

    Args:
        table: the rows to judge by, the same ones for each skip rule. Never those that the result is then reported on.
        budget: most MACs allowed, as a share of the static net's. Alone: the largest share of right answers within
            it; a larger budget never gives fewer right answers nor costs less.
        budget_ms: the same in milliseconds a row, by the stage times of this machine that the table holds
            (`dx.measure`); costs are then times everywhere.
        max_drop: most that may be lost, as a share of the rows (0.01 is a point). Alone: the cheapest within it.
            With a budget: the same, and the note says if the budget is not met.
        temperature: of each exit, or a calibration; 1 without it.
        confidence: one of `CONFIDENCES`, or what gates have learned.
        rule: ``"safe"`` judges by confidence bounds, and takes a policy only if every more cautious one passes too;
            ``"plain"`` judges by what was observed, which on few rows promises too much.
        delta: how often the safe rule may be wrong.
        min_support: with the safe rule, the least rows that must leave at every exit that is on, or skip a stage.
        risk: with ``basis="teacher"``, ``"drop"`` weighs each answer unlike the full net's by what the full net's own
            probabilities say is lost (too much, if it is overconfident as most nets are; too little, if it is
            underconfident); ``"disagreement"`` counts it whole, and no accuracy can drop further than that.
        overhead: price of every early exit that a row passes beyond its MACs (small layers and the decision take longer
            than their MACs say), as a share of the static net. Within a loss the least price is taken instead of the
            fewest MACs; budgets and the costs that are reported stay MACs.

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
    tables = [table] if isinstance(table, ExitTable) else list(table)
    unit = "MACs" if budget_ms is None else "milliseconds"
    if budget_ms is not None:
        if budget is not None:
            raise PolicyError(f"budget {budget} and budget_ms {budget_ms}; give one of them")
        tables = [clocked(t) for t in tables]
        budget = budget_ms * NANOSECONDS / tables[0].static_macs if tables else None
    _check(tables, budget, max_drop, confidence, rule, delta, min_support, risk, overhead)
    temperature_e = temperatures(tables[0], temperature)
    if budget is None and max_drop is None:
        max_drop = DEFAULT_MAX_DROP
    grid_t = threshold_grid(tables, confidence, temperature_e)
    num_early = tables[0].num_exits - 1
    groups = _by_rule(tables)
    skips = any(keep_g is not None for keep_g in groups)
    firsts = range(num_early) if rule == "safe" and len(next(iter(groups.values()))) > 1 else range(1)
    judge = Judge(rule=rule, delta=delta / max(len(firsts) + 2 * skips, 1), min_support=min_support, overhead=overhead)
    verdicts, sweepers = [], []
    for keep_g, alike in groups.items():
        sweepers = [Sweeper(t, confidence, temperature_e, grid_t, risk) for t in alike]
        sets = [*([] if keep_g is None else [()]), *exit_sets(num_early)]
        verdicts += [judge.verdict(on, [sweeper.sweep(on) for sweeper in sweepers]) for on in sets]
    static = static_net(sweepers, judge)
    if max_drop is not None:
        paths = [[v for v in verdicts if v.keep_g is None and v.on[0] >= first] for first in firsts]
        skipping = [v for v in verdicts if v.keep_g is not None]
        paths += [[v for v in skipping if not v.on], [v for v in skipping if v.on]]
        picked = _cheapest(paths, static, max_drop, judge)
    elif budget is not None:
        picked = _best(verdicts, static, budget, None if budget_ms is None else budget_ms / budget)
    note = _note(next(iter(groups.values())), judge, delta, risk, picked, verdicts, budget, max_drop, unit)
    return _policy(tables[0], confidence, temperature_e, grid_t, picked, note)


def _by_rule(tables: Sequence[ExitTable]) -> dict[tuple[float | None, ...] | None, list[ExitTable]]:
    """The tables of each skip rule, which must be as many."""
    groups: dict[tuple[float | None, ...] | None, list[ExitTable]] = {}
    for table in tables:
        groups.setdefault(table.keep_g, []).append(table)
    if len({len(group) for group in groups.values()}) > 1:
        counts = ", ".join(f"{len(group)} for {rule}" for rule, group in groups.items())
        raise PolicyError(f"skip rules with different numbers of tables ({counts}); collect the same samples for each")
    return groups


@dataclass(frozen=True, kw_only=True)
class _Pick:
    """One threshold of one set of exits under one skip rule; with neither exits nor a rule, the static net."""

    on: tuple[int, ...]
    keep_g: tuple[float | None, ...] | None
    t: int
    cost: float
    price: float
    drop: float
    risk: float


def _pick(verdict: Verdict, t: int) -> _Pick:
    return _Pick(
        on=verdict.on,
        keep_g=verdict.keep_g,
        t=t,
        cost=float(verdict.cost_t[t]),
        price=float(verdict.price_t[t]),
        drop=float(verdict.drop_t[t]),
        risk=float(verdict.risk_t[t]),
    )


def _cheapest(paths: Sequence[Sequence[Verdict]], static: Verdict, max_drop: float, judge: Judge) -> _Pick:
    """The cheapest of what may be taken, the static net always among it; equal costs go to the lower risk."""
    picks = [_pick(static, 0)]
    for verdicts in paths:
        if judge.safe:
            for verdict, t in cautious_path(verdicts):
                if verdict.risk_t[t] > max_drop:
                    break
                picks.append(_pick(verdict, t))
            continue
        for verdict in verdicts:
            allowed = np.flatnonzero(verdict.risk_t <= max_drop)
            if len(allowed):
                order = np.lexsort((verdict.risk_t[allowed], verdict.price_t[allowed]))
                picks.append(_pick(verdict, int(allowed[order[0]])))
    return min(picks, key=lambda pick: (pick.price, pick.risk))


def _best(verdicts: Sequence[Verdict], static: Verdict, budget: float, static_ms: float | None) -> _Pick:
    """The best score within the budget; equal scores go to the cheaper, so that cost is monotone in the budget."""
    best: tuple[float, float, _Pick] | None = None
    cheapest = 1.0
    for verdict in [static, *verdicts]:
        supported = np.flatnonzero(verdict.supported_t)
        if not len(supported):
            continue
        cheapest = min(cheapest, float(verdict.cost_t[supported].min()))
        within = supported[verdict.cost_t[supported] <= budget]
        if len(within):
            t = int(within[np.lexsort((verdict.cost_t[within], -verdict.score_t[within]))[0]])
            found = (-float(verdict.score_t[t]), float(verdict.cost_t[t]), _pick(verdict, t))
            if best is None or found[:2] < best[:2]:
                best = found
    if best is None:
        asked, least = f"budget {budget} of the static net's MACs", f"{cheapest:.3f}"
        if static_ms is not None:
            asked, least = f"budget_ms {budget * static_ms:.4g}", f"{cheapest * static_ms:.4g} ms a sample"
        raise PolicyError(
            f"{asked} cannot be met: the cheapest within reach is {least}; allow at least that, or attach earlier or "
            f"cheaper exits"
        )
    return best[2]


def _policy(
    table: ExitTable, confidence: Measure, temperature_e: tuple[float, ...], grid_t: Tensor, picked: _Pick, note: str
) -> Policy:
    threshold_e = [float(grid_t[picked.t]) if e in picked.on else None for e in range(table.num_exits - 1)]
    return Policy(
        confidence=confidence,
        threshold_e=(*threshold_e, 0.0),
        temperature_e=temperature_e,
        keep_g=picked.keep_g,
        basis=table.basis,
        note=note,
    )


def _note(
    tables: Sequence[ExitTable],
    judge: Judge,
    delta: float,
    risk: Risk,
    picked: _Pick,
    verdicts: Sequence[Verdict],
    budget: float | None,
    max_drop: float | None,
    unit: str,
) -> str:
    """How the policy was chosen, in words. Without labels it speaks of agreement only."""
    basis = "the labels" if tables[0].basis == "labels" else "agreement with the full net"
    rows = " and ".join(f"{table.rows} (n={len(table)})" for table in tables)
    how = f"chosen by {basis} on {rows}, basis {tables[0].basis}, rule {judge.rule}"
    if judge.safe:
        how += f" (Clopper-Pearson, delta {delta:g}, {judge.min_support} samples or more leave at each exit)"
    asked = [f"budget {budget:.3g} of the static {unit}"] if budget is not None else []
    asked += [f"at most {max_drop:.2%} lost"] if max_drop is not None else []
    how += f", asked for {' and '.join(asked)}"
    weighed = "disagreement" if risk == "disagreement" else "estimated drop" if tables[0].basis == "teacher" else "drop"
    found = f"{weighed} {picked.drop:.2%}" + (f", bound {picked.risk:.2%}" if judge.safe else "")
    dynamic = picked.on or picked.keep_g is not None
    result = (
        f"{found}, at {picked.cost:.1%} of the static {unit}" if dynamic else _why_static(verdicts, judge, max_drop)
    )
    if max_drop is not None and budget is not None and picked.cost > budget:
        result += "; the budget is not met"
    if any(table.synthetic for table in tables):
        result += "; thresholds were chosen on synthesized samples and need not hold on real ones"
    return f"{result}. {how[0].upper()}{how[1:]}."


def _why_static(verdicts: Sequence[Verdict], judge: Judge, max_drop: float | None) -> str:
    if max_drop is None:
        return "the static net is the best within the budget"
    nothing = "no exit is safe" if all(v.keep_g is None for v in verdicts) else "neither exits nor skipping are safe"
    saving = [(verdict.supported_t & (verdict.cost_t < 1), verdict.risk_t) for verdict in verdicts]
    risks = [float(risk_t[fits_t].min()) for fits_t, risk_t in saving if fits_t.any()]
    if not risks:
        enough = f" with {judge.min_support} samples leaving at each exit that is on" if judge.safe else ""
        return f"{nothing}: none saves MACs{enough}"
    return f"{nothing}: the best {('drop', 'bound')[judge.safe]} reached is {min(risks):.2%}, asked was {max_drop:.2%}"


def temperatures(table: ExitTable, temperature: Calibration | Sequence[float] | None) -> tuple[float, ...]:
    """One an exit, 1 without any.

    Raises:
        PolicyError: another number of them than of exits, or one that is not positive.
    """
    if temperature is None:
        return (1.0,) * table.num_exits
    given = temperature.temperature_e if isinstance(temperature, Calibration) else tuple(map(float, temperature))
    if len(given) != table.num_exits:
        raise PolicyError(f"{len(given)} temperatures for {table.num_exits} exits; calibrate on this table")
    Policy(threshold_e=(0.0,) * len(given), temperature_e=given)  # refuses what no policy may have
    return given


def _check(
    tables: Sequence[ExitTable],
    budget: float | None,
    max_drop: float | None,
    confidence: Measure,
    rule: str,
    delta: float,
    min_support: int,
    risk: str,
    overhead: float,
) -> None:
    check_measure(confidence)
    if not tables:
        raise PolicyError("no table to choose by; give at least one")
    kinds = {(t.trunk_macs_e, t.head_macs_e, t.num_classes, t.basis) for t in tables}
    if len(kinds) > 1:
        raise PolicyError(f"{len(tables)} tables of {len(kinds)} kinds; they must share costs, classes and basis")
    if budget is not None and not 0 < budget < float("inf"):
        raise PolicyError(f"budget {budget}; give a positive share of the static net's MACs, 0.5 for half of them")
    if max_drop is not None and not 0 <= max_drop <= 1:
        raise PolicyError(f"max_drop {max_drop}; give a share of the samples from 0 to 1, 0.01 for one point")
    if not 0 < delta < 1 or min_support < 0:
        raise PolicyError(
            f"delta {delta} and min_support {min_support}; give a delta in (0, 1), a support of 0 or more"
        )
    if not 0 <= overhead < 1:
        raise PolicyError(f"overhead {overhead}; give a share of the static net's time, such as 0.03")
    if rule not in get_args(Rule) or risk not in get_args(Risk):
        raise PolicyError(f"rule {rule!r}, risk {risk!r}; give {get_args(Rule)} and {get_args(Risk)}")
