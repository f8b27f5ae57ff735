"""The papers' losses, slowly."""

import numpy as np


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    raised = np.exp(logits / temperature)
    return raised / raised.sum(-1, keepdims=True)


def distillation(
    student: np.ndarray, teacher: np.ndarray, temperature: float, weight: np.ndarray | None = None
) -> float:
    """Hinton et al. 2015: KL between softened answers, times tau^2, mean over rows (each times its weight)."""
    total = 0.0
    for row, (s, t) in enumerate(zip(student, teacher, strict=True)):
        p, q = softmax(t, temperature), softmax(s, temperature)
        total += float((p * (np.log(p) - np.log(q))).sum()) * (1.0 if weight is None else weight[row])
    return temperature**2 * total / len(student)


def survivor_weights(logits: np.ndarray, strength: float, thresholds: int = 20_000) -> np.ndarray:
    """``[e b]`` from ``[e b k]``: try many thresholds, and count at how many a row has not left before an exit."""
    sure = softmax(logits).max(-1)
    share = np.ones(sure.shape)
    for e in range(1, len(sure)):
        for row in range(sure.shape[1]):
            tried = (np.arange(thresholds) + 0.5) / thresholds
            left = np.zeros(thresholds, bool)
            for earlier in range(e):
                left |= sure[earlier, row] >= tried
            share[e, row] = 1 - left.mean()
    weight = (1 - strength) + strength * share
    return weight / weight.mean(1, keepdims=True)
