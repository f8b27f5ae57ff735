"""Exact one-sided confidence bounds on a share, from counts.

Source: Clopper & Pearson, Biometrika 1934. The bound is wrong with probability at most delta, whatever the share.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def lower_bound(successes: ArrayLike, trials: ArrayLike, delta: float) -> Floats:
    """The share is at least this with probability 1 - delta; 0 where nothing succeeded or nothing was tried.

    >>> lower_bound(100, 100, 0.05).round(3).item()
    0.97
    """
    from scipy.special import betaincinv  # slow to import

    hit, n = np.broadcast_arrays(np.asarray(successes, np.float64), np.asarray(trials, np.float64))
    bound = betaincinv(np.maximum(hit, 1), np.maximum(n - hit + 1, 1), delta)
    return np.where(hit > 0, bound, 0.0)


def upper_bound(successes: ArrayLike, trials: ArrayLike, delta: float) -> Floats:
    """The share is at most this with probability 1 - delta; 1 where everything succeeded or nothing was tried."""
    hit, n = np.broadcast_arrays(np.asarray(successes, np.float64), np.asarray(trials, np.float64))
    return 1 - lower_bound(n - hit, n, delta)
