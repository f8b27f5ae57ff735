"""Confidences, rebuilt slowly, sample by sample."""

import numpy as np


def softmax(z_k):
    e_k = np.exp(np.asarray(z_k, np.float64) - np.max(z_k))
    return e_k / e_k.sum()


def confidence(z_k, measure):
    p_k = np.sort(softmax(z_k))
    if measure == "max_probability":
        return p_k[-1]
    if measure == "margin":
        return p_k[-1] - p_k[-2]
    return 1 + sum(p * np.log(p) for p in p_k if p > 0) / np.log(len(p_k))


def patience(answers, num_exits):
    """Of the last of ``answers`` (those of the exits that ran, in order)."""
    streak = 1
    while streak < len(answers) and answers[-1 - streak] == answers[-1]:
        streak += 1
    return streak / num_exits
