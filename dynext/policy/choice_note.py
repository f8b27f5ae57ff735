"""How a policy was chosen and what it promises, in words: the note that it carries."""

from __future__ import annotations

from collections.abc import Sequence

from dynext.policy.candidates import Candidate, Candidates
from dynext.policy.limits import Limits
from dynext.policy.rule import PlainRule, SafeRule
from dynext.policy.table import ExitTable


def choice_note(
    tables: Sequence[ExitTable],
    rule: SafeRule | PlainRule,
    limits: Limits,
    chosen: Candidate,
    candidates: Sequence[Candidates],
) -> str:
    """Two sentences: what the ``chosen`` one of ``candidates`` promises, and what it was chosen by.

    Without labels they speak of agreement only.
    """
    dynamic = chosen.on or chosen.keep_g is not None
    result = _promise(tables[0], rule, limits, chosen) if dynamic else _why_static(rule, limits, candidates)
    if limits.max_drop is not None and limits.budget is not None and chosen.cost > limits.budget:
        result += "; the budget is not met"
    if any(table.synthetic for table in tables):
        result += "; thresholds were chosen on synthesized samples and need not hold on real ones"
    by = "the labels" if tables[0].basis == "labels" else "agreement with the full net"
    samples = " and ".join(f"{table.rows} (n={len(table)})" for table in tables)
    how = f"{samples}, basis {tables[0].basis}, {rule.in_words()}, asked for {limits.in_words()}"
    return f"{result}. Chosen by {by} on {how}."


def _promise(table: ExitTable, rule: SafeRule | PlainRule, limits: Limits, chosen: Candidate) -> str:
    estimated = "estimated drop" if table.basis == "teacher" else "drop"
    name = "disagreement" if rule.risk == "disagreement" else estimated
    bound = f", bound {chosen.risk:.2%}" if isinstance(rule, SafeRule) else ""
    return f"{name} {chosen.drop:.2%}{bound}, at {chosen.cost:.1%} of the static {limits.unit}"


def _why_static(rule: SafeRule | PlainRule, limits: Limits, candidates: Sequence[Candidates]) -> str:
    if limits.max_drop is None:
        return "the static net is the best within the budget"
    skipping = any(group.keep_g is not None for group in candidates)
    nothing = "neither exits nor skipping are safe" if skipping else "no exit is safe"
    saving = [(group.supported_t & (group.cost_t < 1), group.risk_t) for group in candidates]
    risks = [float(risk_t[saves_t].min()) for saves_t, risk_t in saving if saves_t.any()]
    if not risks:
        least = rule.min_support if isinstance(rule, SafeRule) else None
        enough = "" if least is None else f" with {least} samples leaving at each exit that is on"
        return f"{nothing}: none saves MACs{enough}"
    reached = "bound" if isinstance(rule, SafeRule) else "drop"
    return f"{nothing}: the best {reached} reached is {min(risks):.2%}, asked was {limits.max_drop:.2%}"
