"""Thresholds by trying them all, and MSDNet's by counting samples one by one."""

import itertools
import math

import numpy as np


def outcome(sure_ne, right_ne, trunk_e, head_e, threshold_e):
    """Mean cost and share right of one policy; ``None`` is off, the last exit takes everybody."""
    cost, right = 0.0, 0
    for sure_e, right_e in zip(sure_ne, right_ne, strict=True):
        paid = 0.0
        for e, threshold in enumerate([*threshold_e, 0.0]):
            if threshold is None:
                continue
            paid += head_e[e]
            if e == len(threshold_e) or sure_e[e] >= threshold:
                cost += trunk_e[e] + paid
                right += right_e[e]
                break
    return cost / len(sure_ne), right / len(sure_ne)


def front(sure_ne, right_ne, trunk_e, head_e):
    """All undominated pairs of cost and share right, over every threshold that makes a difference, and none."""
    values_e = [[None, *sorted(set(sure_ne[:, e]))] for e in range(sure_ne.shape[1] - 1)]
    points = {outcome(sure_ne, right_ne, trunk_e, head_e, chosen) for chosen in itertools.product(*values_e)}
    best, kept = -1.0, []
    for cost, right in sorted(points, key=lambda pair: (pair[0], -pair[1])):
        if right > best:
            kept.append((cost, right))
            best = right
    return np.array(kept)


def quota_thresholds(sure_ne, share_e):
    """As MSDNet's public code goes about it: walk down the sorted samples, count those that have not left."""
    n, num_exits = sure_ne.shape
    gone, threshold_e = set(), []
    for e in range(num_exits - 1):
        quota, count, threshold = math.floor(n * share_e[e]), 0, None
        for row in sorted(range(n), key=lambda r: -sure_ne[r, e]):
            if row not in gone:
                count += 1
                if count == quota:
                    threshold = sure_ne[row, e]
                    break
        threshold_e.append(threshold)
        if threshold is not None:
            gone |= {row for row in range(n) if sure_ne[row, e] >= threshold}
    return threshold_e
