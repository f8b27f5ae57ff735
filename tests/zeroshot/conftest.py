"""A tiny teacher with BatchNorm statistics worth matching, one without BatchNorm, and how to see what changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dynext.graph.split import split
from dynext.models import ResNet
from dynext.modules.exits import default_heads
from dynext.net.attach import attach
from dynext.net.dynamic_net import DynamicNet
from dynext.seeding import generator, seeded
from dynext.types import InputSpec


@pytest.fixture
def teacher() -> nn.Module:
    with seeded(0):
        net = ResNet(8, num_classes=4, width=4, channels=3)
    draw = generator(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=draw))
            module.running_var.copy_(torch.rand(module.num_features, generator=draw) + 0.5)
    return net.eval()


@pytest.fixture
def layer_norm_teacher() -> nn.Module:
    with seeded(0):
        return nn.Sequential(nn.Flatten(), nn.LayerNorm(192), nn.Linear(192, 8), nn.GELU(), nn.Linear(8, 4)).eval()


@pytest.fixture
def student(teacher: nn.Module) -> DynamicNet:
    """The teacher's trunk with two exits that know nothing yet."""
    return attach(split(teacher, torch.zeros(1, 3, 8, 8), ["layer1", "layer2"]), default_heads(4, hidden=8))


@pytest.fixture
def spec() -> InputSpec:
    return InputSpec(shape=(3, 8, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
