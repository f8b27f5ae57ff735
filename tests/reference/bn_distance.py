"""The distance between a batch's statistics and a BatchNorm's own, as written, in NumPy."""

import numpy as np


def bn_distance(inputs: list[np.ndarray], means: list[np.ndarray], variances: list[np.ndarray], eps: float) -> float:
    """One entry a BatchNorm: its input ``[b c h w]``, stored mean and variance ``[c]``."""
    layers = []
    for x, mean, variance in zip(inputs, means, variances, strict=True):
        channels = []
        for c in range(x.shape[1]):
            values = x[:, c].reshape(-1)
            m, s2 = values.mean(), ((values - values.mean()) ** 2).mean()
            s, t = np.sqrt(s2 + eps), np.sqrt(variance[c] + eps)
            channels.append(((m - mean[c]) ** 2 + (s - t) ** 2) / t**2)
        layers.append(np.mean(channels))
    return float(np.mean(layers))
