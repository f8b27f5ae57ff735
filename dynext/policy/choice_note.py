"""How a policy was chosen and what it promises, in words: the note that it carries."""

from __future__ import annotations

from collections.abc import Sequence

from dynext.policy.candidates import Candidate
from dynext.policy.limits import Limits
from dynext.policy.rule import PlainRule, SafeRule
from dynext.policy.table import ExitTable
from dynext.policy.unproven import Refusal


def choice_note(
    tables: Sequence[ExitTable],
    rule: SafeRule | PlainRule,
    limits: Limits,
    chosen: Candidate,
    refusal: Refusal | None,
    shared: SafeRule | PlainRule,
) -> str:
    """What ``chosen`` promises, and what it was chosen by; where nothing is proven, why, and what would help.

    Without labels they speak of agreement only.

    Args:
        refusal: why nothing is proven to keep within the loss, where that is so.
        shared: the rule as each path is tested by it.
    """
    skips = chosen.keep_g is not None
    if refusal is None and not chosen.on and not skips:
        result = _why_static(rule, limits)
    elif refusal is None:
        result = _promise(tables[0], rule, limits, chosen)
    else:
        result = refused_in_words(refusal, limits, shared) if refusal.supported else _why_static(rule, limits)
        if chosen.on or skips:
            taken = _promise(tables[0], rule, limits, chosen)
            result = f"not proven within {limits.max_drop:.2%}, taken as the least that may be lost: {taken}; {result}"
    if limits.max_drop is not None and limits.budget is not None and chosen.cost > limits.budget:
        result += "; the budget is not met"
    if any(table.synthetic for table in tables):
        result += "; thresholds were chosen on synthesized samples and need not hold on real ones"
    learned = sum(table.num_learned for table in tables)
    if learned:
        result += (
            f"; the exits have learned from {learned:,} of these samples, and agree there more than on others: choose "
            f"on samples that they have not seen"
        )
    by = "the labels" if tables[0].basis == "labels" else "agreement with the full net"
    samples = " and ".join(f"{table.rows} (n={len(table)})" for table in tables)
    how = f"{samples}, basis {tables[0].basis}, {rule.in_words()}, asked for {limits.in_words()}"
    return f"{result}. Chosen by {by} on {how}."


def _promise(table: ExitTable, rule: SafeRule | PlainRule, limits: Limits, chosen: Candidate) -> str:
    estimated = "estimated drop" if table.basis == "teacher" else "drop"
    name = "disagreement" if rule.risk == "disagreement" else estimated
    bound = f", bound {chosen.risk:.2%}" if isinstance(rule, SafeRule) else ""
    return f"{name} {chosen.drop:.2%}{bound}, at {chosen.cost:.1%} of the static {limits.unit}"


def _why_static(rule: SafeRule | PlainRule, limits: Limits) -> str:
    """Where nothing was refused: a budget alone, or nothing that saves."""
    if limits.max_drop is None:
        return "the static net is the best within the budget"
    least = rule.min_support if isinstance(rule, SafeRule) else None
    enough = "" if least is None else f" with {least} samples leaving at each exit that is on"
    return f"no exit is safe: none saves {limits.unit}{enough}"


def refused_in_words(refusal: Refusal, limits: Limits, shared: SafeRule | PlainRule) -> str:
    """Which test failed first and why, how many samples would do, and which loss would be kept to."""
    first = refusal.first
    exits = f"exit{'s' if len(first.on) > 1 else ''} {' and '.join(map(str, first.on))}" if first.on else ""
    where = " with ".join([*(["skipping"] if first.keep_g is not None else []), *([exits] if exits else [])])
    nothing = "neither exits nor skipping are safe" if refusal.skipping else "no exit is safe"
    lost = "none" if refusal.lost == 0 else f"{refusal.lost:,}"
    seen = f"{lost} of {refusal.num_rows:,} samples lost"
    if not isinstance(shared, SafeRule):
        why = f"the least loss is {first.risk:.2%} ({where}: {seen})"
        return "; ".join([f"{nothing} within {limits.max_drop:.2%}: {why}", *_would_help(refusal, limits)])
    proves = f"which bounds the loss by {first.risk:.2%} only (delta {shared.delta:.3g})"
    why = f"the first test, the most cautious use of {where}, has {seen}, {proves}, and ends the search"
    if refusal.later is not None:
        why += f", although one further down reached {refusal.later:.2%}"
    return "; ".join([f"{nothing} within {limits.max_drop:.2%}: {why}", *_would_help(refusal, limits, safe=True)])


def _would_help(refusal: Refusal, limits: Limits, *, safe: bool = False) -> list[str]:
    more = (
        f"{refusal.enough:,} such samples would be enough" if refusal.enough else "no number of such samples would do"
    )
    told = [more] if safe else []
    if refusal.max_drop is not None:
        saved = 1 - refusal.alternative.cost
        told.append(f"max_drop={refusal.max_drop:.4g} would pass here and save {saved:.1%} of the {limits.unit}")
    return told
