"""The front of policies whose exits share one threshold: what `dynext.choose` chooses from.

Shape legend: e exits (the last is the full net), p policies.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynext.policy.bounds import Floats
from dynext.policy.confidence import Measure
from dynext.policy.fronts.front import undominated
from dynext.policy.sweep import Sweeper, exit_sets, threshold_grid
from dynext.policy.table import ExitTable


def shared_front(table: ExitTable, measure: Measure, temperature_e: Sequence[float]) -> tuple[Floats, Floats]:
    """What one shared threshold can reach on ``table``, all sets of exits together: cost and share right, ascending.

    Costs are shares of the static net's MACs. Picked on the very rows it is drawn from: a picture, not a promise.
    """
    sweeper = Sweeper(table, measure, temperature_e, threshold_grid([table], measure, temperature_e), "drop")
    sweeps = [sweeper.sweep(on) for on in [(), *exit_sets(table.num_exits - 1)]]
    cost_p = np.concatenate([sweep.cost_t for sweep in sweeps])
    right_p = np.concatenate([sweep.right_t for sweep in sweeps]) / len(table)
    best = undominated(cost_p, right_p)
    return cost_p[best], right_p[best]
