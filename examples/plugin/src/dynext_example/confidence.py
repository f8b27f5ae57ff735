"""A confidence: how sure an exit is of each row, in [0, 1], from its logits alone."""

from __future__ import annotations

from torch import Tensor


def gini(logits_nk: Tensor) -> Tensor:
    """Sum of squared probabilities: 1 is sure, 1 / k is a guess."""
    return logits_nk.softmax(-1).square().sum(-1)
