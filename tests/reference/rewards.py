"""Rewards and returns of SkipNet and BlockDrop, one sample and one block at a time."""

import numpy as np


def skipnet_returns(run: np.ndarray, loss: np.ndarray, alpha: float, gamma: float, cost: np.ndarray) -> np.ndarray:
    """``[b g]``: what follows each decision, by going through the blocks again and again."""
    samples, gates = run.shape
    returns = np.zeros((samples, gates))
    for b in range(samples):
        for g in range(gates):
            total = 0.0
            for later in range(g, gates):
                total += gamma ** (later - g) * (1 - run[b, later]) * cost[later] * alpha / gates
            returns[b, g] = total - gamma ** (gates - g) * loss[b]
    return returns


def blockdrop_reward(run: np.ndarray, right: bool, penalty: float) -> float:
    return 1 - (np.count_nonzero(run) / len(run)) ** 2 if right else -penalty


def policy_probability(probability: np.ndarray, run: np.ndarray, mix: float) -> float:
    """Of one sample's whole policy: the product over blocks, after mixing."""
    total = 1.0
    for p, u in zip(probability, run, strict=True):
        mixed = mix * p + (1 - mix) * (1 - p)
        total *= mixed if u else 1 - mixed
    return total
