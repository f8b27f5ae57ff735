"""Gradient equilibrium and drift, slowly."""

import numpy as np
from reference.losses import softmax


def balanced(gradient_e: list[np.ndarray], segment: int) -> np.ndarray:
    """What a trunk parameter between exits ``segment - 1`` and ``segment`` gets: the rule, exit by exit.

    Li et al., ICCV 2019: where exit i stands (from 0, of e), 1/(e - i) of what its head sends and (e - i - 1)/(e - i)
    of what comes from behind. ``gradient_e[j]`` is exit j's own, unscaled gradient.
    """
    num_exits = len(gradient_e)
    total = np.zeros_like(gradient_e[0])
    for j in range(segment, num_exits):
        factor = 1.0
        for passed in range(segment, j):
            factor *= (num_exits - passed - 1) / (num_exits - passed)
        if j < num_exits - 1:
            factor *= 1 / (num_exits - j)
        total += factor * gradient_e[j]
    return total


def drift(logits: np.ndarray, teacher: np.ndarray) -> tuple[list[float], float]:
    """Agreement of each exit ``[n e k]`` with the teacher ``[n k]``, and KL(teacher || last exit) a sample."""
    agreement = [float(np.mean(logits[:, e].argmax(1) == teacher.argmax(1))) for e in range(logits.shape[1])]
    p, q = softmax(teacher), softmax(logits[:, -1])
    return agreement, float((p * np.log(p / q)).sum(1).mean())
