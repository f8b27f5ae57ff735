"""Risk control: how far down a front one may go so that a bound on what is lost holds with probability 1 - delta.

Shape legend: n rows, e exits (the last is the full net).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, get_args

from dynext.errors import PolicyError
from dynext.policy.bounds import upper_bound
from dynext.policy.confidence import confidences, first_sure_exit
from dynext.policy.fronts.front import Front
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable

Lost = Literal["accuracy", "disagreement"]


def control_risk(
    front: Front, table: ExitTable, *, max_drop: float, delta: float = 0.05, risk: Lost = "disagreement"
) -> Policy:
    """The cheapest policy of ``front`` by which at most ``max_drop`` is lost, with probability 1 - ``delta``.

    ``table`` must hold other rows than the front was drawn on. Policies are tested on them from the most expensive on,
    each at ``delta``, until the first whose upper bound exceeds ``max_drop``: the order comes from other rows, so that
    testing many needs no correction. Where no policy passes, the answer is the static net, whose note says so. A front
    by labels may begin with policies that beat the full net and disagree with it; to bound disagreement, draw it on a
    table without labels.

    Args:
        risk: ``"disagreement"``: rows answered unlike the full net, which needs no label, and no accuracy can drop by
            more. ``"accuracy"``: rows that the full net gets right and the policy does not; rows won are not set
            against them.

    Raises:
        PolicyError: figures out of range, a front for another number of exits, accuracy without labels, or rows that
            skipped stages.

    Source: fixed-sequence testing, Angelopoulos et al. 2021, arXiv:2110.01052, down a front drawn on other rows,
    Laufer-Goldshtein et al., ICLR 2023, arXiv:2210.07913; for exits Jazbec et al., NeurIPS 2024, arXiv:2405.20915. The
    bound is Clopper-Pearson's.
    """
    if not 0 <= max_drop <= 1 or not 0 < delta < 1 or risk not in get_args(Lost):
        raise PolicyError(
            f"max_drop {max_drop}, delta {delta}, risk {risk!r}; give a share in [0, 1], one in (0, 1), and one of "
            f"{', '.join(get_args(Lost))}"
        )
    table.check_whole("risk control")
    if risk == "accuracy" and table.basis != "labels":
        raise PolicyError("accuracy is bounded on labelled samples only; give some, or risk='disagreement'")
    terms = f"{risk} at most {max_drop:.2%} with probability {1 - delta:g}, tested on {table.rows} (n={len(table)})"
    chosen = static = replace(Policy.never(table.num_exits), basis=table.basis, note=f"No exit is safe: {terms}.")
    for policy, lost in _lost(front, table, risk):
        if not any(policy.enabled_e[:-1]):
            chosen = static  # it loses nothing, and policies before it cost more
            continue
        bound = float(upper_bound(lost, len(table), delta))
        if bound > max_drop:
            break
        chosen = replace(policy, note=f"{policy.note} {lost} samples lost, bound {bound:.2%}: {terms}.")
    return chosen


def _lost(front: Front, table: ExitTable, risk: Lost) -> Iterator[tuple[Policy, int]]:
    """The front's policies from the most expensive on, each with how many rows it loses; confidences are taken once."""
    first = front.policies[0]
    first.check_exits(table.num_exits)
    sure_ne = confidences(table.logits_nek, first.confidence, first.temperature_e)
    if risk == "disagreement":
        lost_ne = table.answer_ne != table.answer_ne[:, -1:]
    else:
        lost_ne = table.right_ne[:, -1:] & ~table.right_ne
    for policy in reversed(front.policies):
        exit_n = first_sure_exit(sure_ne, policy.threshold_e)
        yield policy, int(lost_ne.gather(1, exit_n[:, None]).sum())
