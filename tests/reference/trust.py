"""Leave one kind out, slowly: every threshold tried on one table, the loss on the other counted sample by sample."""

import numpy as np
from reference.losses import softmax
from scipy.stats import beta


def loss(sure: np.ndarray, wrong: np.ndarray, threshold: float) -> int:
    return sum(1 for s, w in zip(sure, wrong, strict=True) if s >= threshold and w)


def overshoot(first: np.ndarray, second: np.ndarray, max_drop: float, delta: float) -> float:
    """Of one exit: logits ``[n 2 k]`` of the exit and the full net, on two kinds of samples."""
    (sure_a, wrong_a), (sure_b, wrong_b) = (
        (softmax(t[:, 0]).max(1), t[:, 0].argmax(1) != t[:, 1].argmax(1)) for t in (first, second)
    )
    candidates = np.sort(np.unique(np.concatenate([sure_a, sure_b, [0.0, 2.0]])))[::-1]
    safe = 2.0
    for threshold in candidates:
        if loss(sure_a, wrong_a, threshold) > max_drop * len(sure_a):
            break
        safe = threshold
    lost, rows = loss(sure_b, wrong_b, safe), len(sure_b)
    bound = beta.ppf(delta, lost, rows - lost + 1) if lost else 0.0
    return max(1.0, bound / max_drop)
