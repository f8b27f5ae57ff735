"""Risk control: how far down a front one may go so that a bound on what is lost holds with probability 1 - delta.

Shape legend: n rows, p policies.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from dynext.core.bounds import upper_bound
from dynext.core.front import Front
from dynext.core.policy import Policy
from dynext.core.table import ExitTable, simulate
from dynext.errors import PolicyError

Lost = Literal["accuracy", "disagreement"]


def control_risk(
    front: Front, table: ExitTable, *, max_drop: float, delta: float = 0.05, risk: Lost = "disagreement"
) -> Policy:
    """The cheapest policy of ``front`` by which at most ``max_drop`` is lost, with probability 1 - ``delta``.

    ``table`` must hold other rows than the front was drawn on. Policies are tested on them from the dearest on, each at
    ``delta``, until the first whose upper bound exceeds ``max_drop``: the order comes from other rows, so that testing
    many needs no correction. No policy that passes is an answer too: the static net, whose note says so. A front by
    labels may begin with policies that beat the full net and disagree with it; to bound disagreement, draw it on a
    table without labels.

    Args:
        risk: ``"disagreement"``: rows answered unlike the full net, which needs no label, and no accuracy can drop by
            more. ``"accuracy"``: rows that the full net gets right and the policy does not; rows won are not set
            against them.

    Raises:
        PolicyError: figures out of range, a front for another number of exits, or accuracy without labels.

    Source: fixed-sequence testing, Angelopoulos et al. 2021, arXiv:2110.01052, down a front drawn on other rows,
    Laufer-Goldshtein et al., ICLR 2023, arXiv:2210.07913; for exits Jazbec et al., NeurIPS 2024, arXiv:2405.20915. The
    bound is Clopper-Pearson's.
    """
    if not 0 <= max_drop <= 1 or not 0 < delta < 1 or risk not in get_args(Lost):
        raise PolicyError(
            f"max_drop {max_drop}, delta {delta}, risk {risk!r}; give a share in [0, 1], one in (0, 1), and one of "
            f"{', '.join(get_args(Lost))}"
        )
    if risk == "accuracy" and table.basis != "labels":
        raise PolicyError("accuracy is bounded on labelled rows only; give some, or risk='disagreement'")
    told = f"{risk} at most {max_drop:.2%} with probability {1 - delta:g}, tested on {table.rows} (n={len(table)})"
    picked: tuple[Policy, str] | None = None
    for policy in reversed(front.policies):
        lost = _lost(table, policy, risk)
        bound = float(upper_bound(lost, len(table), delta))
        if bound > max_drop and any(policy.enabled_e[:-1]):
            break
        picked = policy, f"{lost} rows lost, bound {bound:.2%}"
    if picked is None or not any(picked[0].enabled_e[:-1]):
        return replace(Policy.never(table.num_exits), basis=table.basis, note=f"No exit is safe: {told}.")
    policy, found = picked
    return replace(policy, note=f"{policy.note} {found}: {told}.")


def _lost(table: ExitTable, policy: Policy, risk: Lost) -> int:
    """Rows that the policy loses."""
    exit_n = simulate(table, policy).exit_n[:, None]
    if risk == "disagreement":
        return int((table.answer_ne.gather(1, exit_n)[:, 0] != table.answer_ne[:, -1]).sum())
    right_n = table.right_ne.gather(1, exit_n)[:, 0]
    return int(np.count_nonzero((table.right_ne[:, -1] & ~right_n).numpy()))
