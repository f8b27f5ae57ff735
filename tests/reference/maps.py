"""Attention maps and their losses, slowly: Zagoruyko & Komodakis, ICLR 2017; SAD, Hou et al., ICCV 2019."""

import numpy as np
from reference.losses import cross_entropy, distillation


def attention_map(feature: np.ndarray, power: float = 2.0) -> np.ndarray:
    """``[c h w]`` to ``[h w]``: the mean over channels of |x|^p."""
    total = np.zeros(feature.shape[1:])
    for channel in feature:
        total += np.abs(channel) ** power
    return total / len(feature)


def at(feature: np.ndarray) -> np.ndarray:
    """normalize(flatten(mean_c x^2)) of one sample."""
    flat = attention_map(feature).reshape(-1)
    return flat / np.sqrt((flat**2).sum())


def transfer(student: np.ndarray, teacher: np.ndarray) -> float:
    """||at(S) - at(T)||^2, mean over samples ``[b c h w]``."""
    return float(np.mean([((at(s) - at(t)) ** 2).sum() for s, t in zip(student, teacher, strict=True)]))


def softmax_map(feature: np.ndarray) -> np.ndarray:
    raised = np.exp(attention_map(feature).reshape(-1))
    return raised / raised.sum()


def mimicry(student: np.ndarray, teacher: np.ndarray) -> float:
    """SAD: mean squared difference of the two distributions over positions."""
    pairs = zip(student, teacher, strict=True)
    return float(np.mean([((softmax_map(s) - softmax_map(t)) ** 2).mean() for s, t in pairs]))


def truth(logits: np.ndarray, full: np.ndarray, y: np.ndarray | None, temperature: float, alpha: float) -> float:
    taught = distillation(logits, full, temperature)
    return taught if y is None else (1 - alpha) * cross_entropy(logits, y) + alpha * taught


def lent(
    own: np.ndarray, lent: np.ndarray, masks: tuple[np.ndarray, np.ndarray], full: np.ndarray,
    y: np.ndarray | None, temperature: float, alpha: float, attention: float,
) -> float:  # fmt: skip
    """L = CE(h(a f)) + CE(h(b f)) + lambda ||at(b) - at(a)||^2 + tau^2 KL(p_a || p_b) of one exit."""
    total = truth(own, full, y, temperature, alpha) + truth(lent, full, y, temperature, alpha)
    return total + attention * transfer(*masks) + distillation(own, lent, temperature)


def bilinear(feature: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``[c h w]`` at another size; pixels' centres meet, edges are held."""
    _, height, width = feature.shape
    out = np.zeros((len(feature), *size))
    for i in range(size[0]):
        for j in range(size[1]):
            y = min(max((i + 0.5) * height / size[0] - 0.5, 0), height - 1)
            x = min(max((j + 0.5) * width / size[1] - 0.5, 0), width - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            dy, dx = y - top, x - left
            above = (1 - dx) * feature[:, top, left] + dx * feature[:, top, right]
            below = (1 - dx) * feature[:, bottom, left] + dx * feature[:, bottom, right]
            out[:, i, j] = (1 - dy) * above + dy * below
    return out
