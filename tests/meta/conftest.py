"""Digits to meta-train on and others, and a small net for three of them."""

from __future__ import annotations

import pytest
import torch

import dynext as dx
from dynext.seeding import seeded


@pytest.fixture(scope="session")
def digit_samples() -> tuple[dx.data.Samples, dx.data.Samples]:
    """Digits of six classes to meta-train on, and of the other four."""
    base, new = dx.data.split_classes(dx.data.digits(), [6, 4], seed=0)
    return base, new


@pytest.fixture
def digit_net() -> dx.DynamicNet:
    """Three classes, two early exits."""
    with seeded(0):
        model = dx.models.ResNet(8, num_classes=3, width=4, channels=1).eval()
    staged = dx.split(model, torch.zeros(1, 1, 8, 8), after=["layer1", "layer2"])
    return dx.attach(staged, dx.heads.conv_heads(3, hidden=8, separable=0))
