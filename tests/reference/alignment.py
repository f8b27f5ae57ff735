"""What aligns exits and what measures it, slowly, from the papers' equations."""

import numpy as np


def unit(z: np.ndarray) -> np.ndarray:
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def negative_cosine(early: np.ndarray, final: np.ndarray) -> float:
    """SimSiam, eq. 1."""
    return float(-np.mean([unit(p) @ unit(z) for p, z in zip(early, final, strict=True)]))


def self_contrastive(z: np.ndarray, t: float, y: np.ndarray | None = None) -> float:
    """SelfCon, of ``[m b d]``: every exit's sample an anchor, log-odds of each positive among all other projections."""
    m, b, _ = z.shape
    anchors = [(e, i) for e in range(m) for i in range(b)]
    z, y = unit(z), np.arange(b) if y is None else y
    total = 0.0
    for e, i in anchors:
        others = [other for other in anchors if other != (e, i)]
        below = sum(np.exp(z[e, i] @ z[a] / t) for a in others)
        positives = [other for other in others if y[other[1]] == y[i]]
        total -= np.mean([np.log(np.exp(z[e, i] @ z[p] / t) / below) for p in positives])
    return float(total / len(anchors))


def barlow(a: np.ndarray, b: np.ndarray, strength: float = 5e-3) -> float:
    """Barlow Twins, eq. 1 and 2, with the 1e-5 under its BatchNorm's root."""
    a, b = ((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in (a, b))
    total = 0.0
    for i in range(a.shape[1]):
        for j in range(b.shape[1]):
            c = np.mean(a[:, i] * b[:, j])
            total += (1 - c) ** 2 if i == j else strength * c**2
    return float(total)


def vicreg(a: np.ndarray, b: np.ndarray) -> float:
    """VICReg, eq. 1 to 6, as its code has it: means over dimensions, 25, 25, 1, half of both variance terms."""
    invariance = np.mean((a - b) ** 2)
    variance = np.mean([np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + 1e-4)).mean() for z in (a, b)])
    covariance = 0.0
    for z in (a, b):
        c = np.cov(z.T)
        covariance += ((c**2).sum() - (np.diag(c) ** 2).sum()) / z.shape[1]
    return float(25 * invariance + 25 * variance + covariance)


def l2(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean((a - b) ** 2))


def effective_rank(z: np.ndarray) -> float:
    """RankMe, eq. 1, of centered samples."""
    s = np.linalg.svd(z - z.mean(0), compute_uv=False)
    p = s / s.sum()
    return float(np.exp(-sum(q * np.log(q) for q in p if q > 0)))


def cka(a: np.ndarray, b: np.ndarray) -> float:
    """Linear CKA by HSIC on centered Gram matrices, Kornblith et al., eq. 1 to 3."""
    n = len(a)
    h = np.eye(n) - np.ones((n, n)) / n
    k, q = a @ a.T, b @ b.T

    def hsic(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.trace(x @ h @ y @ h)) / (n - 1) ** 2

    return hsic(k, q) / np.sqrt(hsic(k, k) * hsic(q, q))


def prototype_logits(examples: np.ndarray, y: np.ndarray, asked: np.ndarray, center: np.ndarray) -> np.ndarray:
    """SimpleShot's CL2N with cosines: mean directions of a class's centered examples."""
    logits = np.zeros((len(asked), int(y.max()) + 1))
    for k in range(logits.shape[1]):
        vector = np.mean([unit(f - center) for f, label in zip(examples, y, strict=True) if label == k], axis=0)
        for n, embedding in enumerate(asked):
            logits[n, k] = 10 * unit(embedding - center) @ unit(vector)
    return logits
