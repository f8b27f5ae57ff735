"""MSDNet's thresholds: so many rows shall leave at each exit.

Shape legend: n rows, e exits (the last is the full net).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dynext.errors import PolicyError
from dynext.policy.bounds import Floats
from dynext.policy.calibrate import Calibration
from dynext.policy.confidence import Measure
from dynext.policy.fronts.front import Front, Grid, undominated
from dynext.policy.table import ExitTable

POINTS = tuple(p / 20 for p in range(1, 40))
"""The published values of q."""


def quotas(num_exits: int, q: float) -> tuple[float, ...]:
    """Share of the rows that shall leave at exit e (from 0): proportional to ``q ** (e + 1)``.

    >>> [round(share, 3) for share in quotas(3, 0.5)]
    [0.571, 0.286, 0.143]

    Source: Huang et al., ICLR 2018, arXiv:1703.09844, section 5.2, where q is a row's probability to stay; above 1,
    rows rather leave late.
    """
    if not q > 0 or num_exits < 1:
        raise PolicyError(f"q {q} for {num_exits} exits; give a positive one for at least one exit")
    powers = [q ** (e + 1) for e in range(num_exits)]
    return tuple(power / sum(powers) for power in powers)


def quota_thresholds(sure_ne: Floats, share_e: Sequence[float]) -> list[float | None]:
    """Each early exit's threshold by which ``share_e`` of the rows leave there, those with the largest confidence.

    Exit after exit: the confidence of the floor(n share)-th surest row that has not left; ``None`` (off) where there
    are not so many, or none shall leave. Rows of the very same confidence leave with it.

    Source: as the public PyTorch code of MSDNet finds them, with a threshold of 1e8 where ours switches the exit off.
    """
    left_n = np.zeros(len(sure_ne), bool)
    threshold_e: list[float | None] = []
    for e, share in enumerate(share_e[:-1]):
        quota = math.floor(len(sure_ne) * share)
        waiting = np.sort(np.nan_to_num(sure_ne[~left_n, e], nan=-1.0))[::-1]
        if not 0 < quota <= len(waiting) or waiting[quota - 1] < 0:
            threshold_e.append(None)
            continue
        threshold = float(waiting[quota - 1])
        threshold_e.append(threshold)
        left_n |= sure_ne[:, e] >= threshold
    return threshold_e


def quota_front(
    table: ExitTable,
    *,
    temperature: Calibration | Sequence[float] | None = None,
    confidence: Measure = "max_probability",
    points: Sequence[float] = POINTS,
) -> Front:
    """MSDNet's budgeted policies on ``table``: thresholds for `quotas` of each q, and the static net.

    Labels play no part in thresholds; they only say which of the policies are worth keeping.

    Raises:
        PolicyError: a q that is not positive, or patience.
    """
    grid = Grid(table, size=len(table), temperature=temperature, confidence=confidence)
    chosen = []
    for q in points:
        threshold_e = quota_thresholds(grid.sure_ne, quotas(table.num_exits, q))
        for grid_t, threshold in zip(grid.thresholds_e, threshold_e, strict=True):
            # the grid's thresholds lie between confidences: the one just below leaves the same rows
            chosen.append(len(grid_t) if threshold is None else int(np.searchsorted(grid_t, threshold, "right")) - 1)
    chosen_pe = np.array(chosen, np.int64).reshape(len(points), -1)
    cost_p, right_p = grid.score(chosen_pe)
    return grid.front(chosen_pe[undominated(cost_p, right_p)], "MSDNet's quotas")
