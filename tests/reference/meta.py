"""Meta-learning in NumPy, slowly: one linear softmax classifier, every derivative by hand.

Shapes: b samples, d inputs, k classes. W is ``[d k]``.
"""

from __future__ import annotations

import numpy as np


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def loss(W: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    return float(-np.log(softmax(x @ W)[np.arange(len(y)), y]).mean())


def gradient(W: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x.T @ (softmax(x @ W) - np.eye(W.shape[1])[y]) / len(y)


def hessian_times(W: np.ndarray, x: np.ndarray, v: np.ndarray) -> np.ndarray:
    p = softmax(x @ W)
    xv = x @ v
    return x.T @ (p * xv - p * (p * xv).sum(1, keepdims=True)) / len(x)


def maml_gradient(
    W: np.ndarray, support: tuple[np.ndarray, np.ndarray], query: tuple[np.ndarray, np.ndarray], lr: float, steps: int
) -> np.ndarray:
    """Finn et al. 2017, eq. 1: the query loss after the steps, by the start; ``(I - lr H)`` once a step."""
    path = [W]
    for _ in range(steps):
        path.append(path[-1] - lr * gradient(path[-1], *support))
    g = gradient(path[-1], *query)
    for before in reversed(path[:-1]):
        g = g - lr * hessian_times(before, support[0], g)
    return g


def first_order_gradient(
    W: np.ndarray, support: tuple[np.ndarray, np.ndarray], query: tuple[np.ndarray, np.ndarray], lr: float, steps: int
) -> np.ndarray:
    for _ in range(steps):
        W = W - lr * gradient(W, *support)
    return gradient(W, *query)


def reptile_gradient(W: np.ndarray, support: tuple[np.ndarray, np.ndarray], lr: float, steps: int) -> np.ndarray:
    """Nichol et al. 2018, algorithm 1: from where the steps lead back to the start."""
    led = W
    for _ in range(steps):
        led = led - lr * gradient(led, *support)
    return W - led


def meta_sgd_gradient(
    W: np.ndarray, support: tuple[np.ndarray, np.ndarray], query: tuple[np.ndarray, np.ndarray], lr: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Li et al. 2017, eq. 2, one step: by the start, and by the step sizes."""
    inner = gradient(W, *support)
    g = gradient(W - lr * inner, *query)
    return g - hessian_times(W, support[0], lr * g), -g * inner


def prototype_log_probabilities(support: np.ndarray, y: np.ndarray, query: np.ndarray, classes: int) -> np.ndarray:
    """Snell et al. 2017, eq. 1 and 2."""
    means = np.stack([support[y == c].mean(0) for c in range(classes)])
    distance = ((query[:, None] - means[None]) ** 2).sum(-1)
    return np.log(softmax(-distance))


def leaving(sure: np.ndarray, share: tuple[float, ...]) -> np.ndarray:
    """Exit after exit, the surest of those still there."""
    exits = np.full(len(sure), len(share) - 1)
    there = list(range(len(sure)))
    for e, part in enumerate(share[:-1]):
        out = sorted(there, key=lambda sample: -sure[sample, e])[: int(len(sure) * part)]
        for sample in out:
            exits[sample] = e
            there.remove(sample)
    return exits
