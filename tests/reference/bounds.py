"""Clopper-Pearson by its definition: the share at which what was seen becomes too unlikely."""

from math import comb


def tail(successes, trials, share):
    """Probability of at least so many successes."""
    return sum(comb(trials, i) * share**i * (1 - share) ** (trials - i) for i in range(successes, trials + 1))


def lower_bound(successes, trials, delta):
    """The smallest share under which so many successes have probability delta, by bisection."""
    if successes == 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(60):
        share = (low + high) / 2
        low, high = (low, share) if tail(successes, trials, share) > delta else (share, high)
    return (low + high) / 2
