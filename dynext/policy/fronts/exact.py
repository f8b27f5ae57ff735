"""Every combination of thresholds, counted at once: exact where few exits make it cheap.

Shape legend: n rows, e exits (the last is the full net), t thresholds of an exit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynext.errors import PolicyError
from dynext.policy.bounds import Floats
from dynext.policy.calibrate import Calibration
from dynext.policy.confidence import Measure
from dynext.policy.fronts.front import Front, Grid, Ints, undominated
from dynext.policy.table import ExitTable

CELLS = 400_000
"""Most combinations that are counted."""
LEAST = 5
"""Fewer thresholds an exit than this are not worth being exact about."""


def exact_front(
    table: ExitTable,
    *,
    temperature: Calibration | Sequence[float] | None = None,
    confidence: Measure = "max_probability",
) -> Front:
    """The best policies there are on ``table`` with a threshold of its own, or none, at every early exit.

    All combinations are counted, of as many thresholds an exit as make up to 400,000 of them (631 for two early exits,
    72 for three, 24 for four): all thresholds that matter where the table has no more confidences, else evenly many
    rows between two of them.

    Raises:
        PolicyError: more than seven early exits, or patience; `genetic_front` takes more.
    """
    early = table.num_exits - 1
    size = int(CELLS ** (1 / max(early, 1))) - 1
    if size < LEAST:
        raise PolicyError(
            f"{early} early exits leave {max(size, 0)} thresholds an exit for an exact search; use "
            f"dx.policies.genetic_front, or attach fewer exits"
        )
    grid = Grid(table, size=size, temperature=temperature, confidence=confidence)
    if not early:
        return grid.front(np.zeros((0, 0), np.int64), "exact search")
    cost, right = _counted(grid)
    best = undominated(cost.ravel(), right.ravel())
    chosen = np.stack(np.unravel_index(best, cost.shape), axis=1).astype(np.int64)
    return grid.front(chosen, "exact search")


def _counted(grid: Grid) -> tuple[Floats, Floats]:
    """Cost and share right of every combination, ``[t + 1, ..., t + 1]`` with an axis an early exit, off the last.

    The rows that leave at an exit reach its threshold and none of those before: sums over corners of the histogram of
    how many thresholds each row reaches.
    """
    table, shape = grid.table, tuple((grid.off_e + 1).tolist())
    early = len(shape)
    cost, right = np.zeros(shape), np.zeros(shape)
    for e in range(early):
        on = np.arange(shape[e]) < shape[e] - 1
        here = _corner(grid.reached_ne[:, : e + 1], shape[: e + 1], None)
        cost += _wide(_leaving(here) * table.trunk_macs_e[e], early)
        right += _wide(_leaving(_corner(grid.reached_ne[:, : e + 1], shape[: e + 1], grid.right_ne[:, e])), early)
        passing = _passing(_corner(grid.reached_ne[:, :e], shape[:e], None))
        cost += _wide(passing[..., None] * on * table.head_macs_e[e], early)
    whole = _corner(grid.reached_ne, shape, None)
    cost += _passing(whole) * table.trunk_macs_e[-1]
    right += _passing(_corner(grid.reached_ne, shape, grid.right_ne[:, -1]))
    return cost / len(table) / max(table.static_macs, 1), right / len(table)


def _corner(reached_ne: Ints, shape: tuple[int, ...], counts_n: np.ndarray | None) -> Floats:
    """Rows (or those in ``counts_n``) by how many thresholds they reach at each of these exits."""
    if not shape:
        return np.array(float(len(reached_ne)))
    cell_n = np.ravel_multi_index(tuple(reached_ne.T), shape)
    weight_n = None if counts_n is None else counts_n.astype(np.float64)
    return np.bincount(cell_n, weight_n, int(np.prod(shape))).reshape(shape).astype(np.float64)


def _passing(counts: Floats) -> Floats:
    """Rows that reach none of the chosen thresholds: cumulative along every axis."""
    for axis in range(counts.ndim):
        counts = counts.cumsum(axis)
    return counts


def _leaving(counts: Floats) -> Floats:
    """Rows that reach the threshold of the last axis and none before: cumulative, and from the end along the last."""
    for axis in range(counts.ndim - 1):
        counts = counts.cumsum(axis)
    return counts.sum(-1, keepdims=True) - counts.cumsum(-1)


def _wide(counts: Floats, dimensions: int) -> Floats:
    """With an axis for each exit still to come."""
    return counts.reshape(counts.shape + (1,) * (dimensions - counts.ndim))
