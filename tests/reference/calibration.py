"""Temperature and calibration error, rebuilt slowly."""

import numpy as np
from reference.confidence import softmax


def nll(logits_nk, target_n, temperature):
    """Mean negative log-likelihood at a temperature."""
    return -np.mean([np.log(softmax(z_k / temperature)[y]) for z_k, y in zip(logits_nk, target_n, strict=True)])


def best_temperature(logits_nk, target_n):
    """By golden section in log T: the loss is unimodal there. Guo et al., ICML 2017, section 4.2."""
    low, high, ratio = np.log(0.05), np.log(20.0), (np.sqrt(5) - 1) / 2
    for _ in range(60):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        if nll(logits_nk, target_n, np.exp(a)) < nll(logits_nk, target_n, np.exp(b)):
            high = b
        else:
            low = a
    return np.exp((low + high) / 2)


def ece(logits_nk, target_n, bins):
    """Sum over bins of share of samples x |share right - mean confidence|. Naeini et al., AAAI 2015."""
    rows = [
        (max(p), int(np.argmax(p)) == y) for p, y in ((softmax(z), y) for z, y in zip(logits_nk, target_n, strict=True))
    ]
    total = 0.0
    for w in range(bins):
        inside = [(p, right) for p, right in rows if w / bins < p <= (w + 1) / bins]
        if inside:
            sure, right = np.mean(inside, axis=0)
            total += len(inside) / len(rows) * abs(right - sure)
    return total


def class_biases(logits_nk, target_n, spread, steps=30_000, rate=0.3):
    """T b - its mean, by plain gradient descent on (1/T, b). Alexandari et al., ICML 2020, with a normal prior on b."""
    n, k = logits_nk.shape
    beta, bias_k, target_nk = 1.0, np.zeros(k), np.eye(k)[target_n]
    for _ in range(steps):
        e_nk = np.exp(beta * logits_nk + bias_k)
        gap_nk = e_nk / e_nk.sum(axis=1, keepdims=True) - target_nk
        beta -= rate * np.mean(np.sum(gap_nk * logits_nk, axis=1))
        bias_k = bias_k - rate * (gap_nk.mean(axis=0) + bias_k / (spread**2 * n))
    return (bias_k - bias_k.mean()) / beta
