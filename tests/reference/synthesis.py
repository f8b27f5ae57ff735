"""What synthesized samples are made for, as the papers write it, in NumPy, one sample at a time."""

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum()


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> float:
    m = (p + q) / 2
    return 0.5 * kl(p, m) + 0.5 * kl(q, m)


def competition(exits: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """DeepInversion's JS(teacher, student), mean over exits: ``[b e k]`` and ``[b k]`` to ``[b]``."""
    return np.array(
        [
            np.mean([jensen_shannon(softmax(answer), softmax(logits)) for logits in row])
            for row, answer in zip(exits, answers, strict=True)
        ]
    )


def adversarial(exits: np.ndarray, answers: np.ndarray) -> float:
    """CMI's KL(teacher || student) where both name the same class, 0 elsewhere; mean over samples and exits."""
    found = []
    for row, answer in zip(exits, answers, strict=True):
        for logits in row:
            same = logits.argmax() == answer.argmax()
            found.append(kl(softmax(answer), softmax(logits)) if same else 0.0)
    return float(np.mean(found))


def mode_seeking(x1: np.ndarray, x2: np.ndarray, z1: np.ndarray, z2: np.ndarray) -> float:
    """Mao et al.: d(z1, z2) / d(x1, x2) with L1 distances, mean over pairs."""
    pairs = zip(x1, x2, z1, z2, strict=True)
    return float(np.mean([np.abs(c - d).mean() / (np.abs(a - b).mean() + 1e-5) for a, b, c, d in pairs]))


def similarity(weight: np.ndarray) -> np.ndarray:
    """ZSKD's class similarity: cosines of the last layer's weights ``[k d]``, each sample brought to [0, 1]."""
    k = len(weight)
    found = np.empty((k, k))
    for i in range(k):
        for j in range(k):
            found[i, j] = weight[i] @ weight[j] / (np.linalg.norm(weight[i]) * np.linalg.norm(weight[j]))
    for i in range(k):
        found[i] = (found[i] - found[i].min()) / (found[i].max() - found[i].min())
    return found


def published_concentration(row: np.ndarray, beta: float) -> np.ndarray:
    """ZSKD's public code: brought to [0, 1] once more after the multiplication."""
    scaled = beta * row
    return (scaled - scaled.min()) / (scaled.max() - scaled.min()) + 1e-4


def impression_loss(logits: np.ndarray, target: np.ndarray, temperature: float) -> float:
    """ZSKD's cross-entropy H(y, softmax(logits / tau)), mean over samples."""
    rows = zip(logits, target, strict=True)
    return float(np.mean([-(y * np.log(softmax(row / temperature))).sum() for row, y in rows]))


def inversion_loss(
    distance: float, logits: np.ndarray, target: np.ndarray, x: np.ndarray, exits: np.ndarray, weight: dict[str, float]
) -> float:
    """DeepInversion with normalized terms: BN, CE, total variation, l2, and 1 - JS against the exits."""
    ce = np.mean([-np.log(softmax(row)[t]) for row, t in zip(logits, target, strict=True)])
    tv = np.abs(np.diff(x, axis=-1)).mean() + np.abs(np.diff(x, axis=-2)).mean()
    return float(
        weight["bn"] * distance
        + weight["ce"] * ce
        + weight["tv"] * tv
        + weight["l2"] * (x**2).mean()
        + weight["compete"] * (1 - competition(exits, logits).mean())
    )


def mean_cosine_distance(feature: np.ndarray) -> float:
    """1 - cosine, mean over all pairs of different samples."""
    found = []
    for i in range(len(feature)):
        for j in range(i):
            a, b = feature[i], feature[j]
            found.append(1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    return float(np.mean(found))
