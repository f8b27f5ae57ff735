"""A gate: whether a sample runs a stage, from what goes into it."""

from __future__ import annotations

from torch import nn


def gate(tap_shape: tuple[int, ...]) -> nn.Module:
    """A linear layer on channels averaged over the map; ``tap_shape`` is (channels, height, width)."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(tap_shape[0], 1), nn.Flatten(0))
