"""The whole front by a genetic algorithm: for more exits than an exact search can take.

Shape legend: e exits (the last is the full net), p policies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dynext.errors import PolicyError
from dynext.policy.calibrate import Calibration
from dynext.policy.confidence import Measure
from dynext.policy.fronts.front import Front, Grid, Ints
from dynext.policy.table import ExitTable

THRESHOLDS = 200
"""Thresholds an exit to search among."""


def genetic_front(
    table: ExitTable,
    *,
    temperature: Calibration | Sequence[float] | None = None,
    confidence: Measure = "max_probability",
    population: int = 100,
    generations: int = 100,
    seed: int = 0,
) -> Front:
    """Good policies on ``table`` with a threshold of its own, or none, at every early exit: all trade-offs at once.

    NSGA-II over the number of each exit's threshold, cost against rows that are wrong. It starts from shared thresholds
    and from random ones.

    Raises:
        PolicyError: a population of fewer than four, no generation, or patience.

    Source: SCAN, Zhang et al., NeurIPS 2019, arXiv:1906.03951, searches thresholds by a genetic algorithm, one weighted
    sum at a time; Deb et al., IEEE TEC 2002 (NSGA-II), as pymoo has it.
    """
    if population < 4 or generations < 1:
        raise PolicyError(f"population {population}, generations {generations}; give at least 4 and 1")
    grid = Grid(table, size=THRESHOLDS, temperature=temperature, confidence=confidence)
    if table.num_exits == 1:
        return grid.front(np.zeros((0, 0), np.int64), "genetic search")
    chosen_pe = _evolved(grid, population, generations, seed)
    return grid.front(chosen_pe, f"genetic search (seed {seed})")


def _evolved(grid: Grid, population: int, generations: int, seed: int) -> Ints:
    from pymoo.algorithms.moo.nsga2 import NSGA2  # slow to import
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.optimize import minimize

    class Thresholds(Problem):
        """Numbers of thresholds to cost and share wrong."""

        def __init__(self) -> None:
            super().__init__(n_var=len(grid.off_e), n_obj=2, xl=np.zeros_like(grid.off_e), xu=grid.off_e, vtype=int)

        def _evaluate(self, x: Ints, out: dict[str, Any], *_: Any, **__: Any) -> None:
            cost_p, right_p = grid.score(x.astype(np.int64))
            out["F"] = np.stack([cost_p, 1 - right_p], axis=1)

    algorithm = NSGA2(
        pop_size=population,
        sampling=_first(grid, population, seed),
        crossover=SBX(prob=0.9, eta=5, vtype=float, repair=RoundingRepair()),
        mutation=PM(eta=10, vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    result = minimize(Thresholds(), algorithm, ("n_gen", generations), seed=seed, verbose=False)
    return np.atleast_2d(result.X).astype(np.int64)


def _first(grid: Grid, population: int, seed: int) -> Ints:
    """Half of the first policies share a threshold among some of the exits, the others are random."""
    draw = np.random.default_rng(seed)
    chosen_pe = draw.integers(0, grid.off_e + 1, (population, len(grid.off_e)))
    for p, shared in enumerate(np.linspace(0, 1, population // 2)):
        own_e = [np.searchsorted(grid_t, shared, side="right") - 1 for grid_t in grid.thresholds_e]
        off_e = draw.random(len(grid.off_e)) < 0.25
        chosen_pe[p] = np.where(off_e, grid.off_e, own_e)
    return chosen_pe
