"""A head: what an exit is made of, for a tap of a given shape."""

from __future__ import annotations

from torch import nn


def head(tap_shape: tuple[int, ...], num_classes: int = 10) -> nn.Module:
    """Channels averaged over the map, and one linear layer; ``tap_shape`` is (channels, height, width)."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(tap_shape[0], num_classes))
