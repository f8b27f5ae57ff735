"""A tiny residual net that has learned four classes of noisy stripes in seconds, and samples of these classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import dynext as dx
from dynext.seeding import generator, seeded


def stripes(n: int, seed: int) -> dx.data.Samples:
    """Images ``[1 8 8]`` whose class is the direction of their stripes; labels with them."""
    draw = generator(seed)
    y = torch.randint(4, (n,), generator=draw)
    i, j = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    waves = torch.stack([i, j, i + j, i - j]).float()
    phase = 6.28 * torch.rand(n, 1, 1, generator=draw)
    x = 0.5 + 0.35 * torch.sin(1.6 * waves[y] + phase) + 0.1 * torch.randn(n, 8, 8, generator=draw)
    spec = dx.InputSpec(shape=(1, 8, 8), mean=(0.5,), std=(0.25,))
    return dx.data.Samples(pixels=x.clamp(0, 1)[:, None], y=y, spec=spec)


@pytest.fixture(scope="session")
def train_samples() -> dx.data.Samples:
    return stripes(400, 0)


@pytest.fixture(scope="session")
def test_samples() -> dx.data.Samples:
    return stripes(300, 1)


@pytest.fixture(scope="session")
def _taught(train_samples: dx.data.Samples) -> dx.models.ResNet:
    with seeded(0):
        net = dx.models.ResNet(14, num_classes=4, width=8, channels=1)

    def step(module: torch.nn.Module, draw: torch.Generator, done: float) -> torch.Tensor:
        batch = train_samples.take(torch.randint(len(train_samples), (64,), generator=draw))
        return F.cross_entropy(module(batch.x), batch.y)

    dx.fit(net.train(), step, dx.FitConfig(steps=60, lr=1e-2, progress=False))
    return net.eval()


@pytest.fixture
def static(_taught: dx.models.ResNet) -> dx.graph.StagedNet:
    """Its blocks as stages; four of them may be skipped."""
    return dx.split(_taught, torch.zeros(1, 1, 8, 8), granularity="block")


@pytest.fixture
def quick() -> dx.FitConfig:
    return dx.FitConfig(steps=30, lr=1e-2, batch_size=64, progress=False)


@pytest.fixture
def with_trunk(quick: dx.FitConfig) -> dx.FitConfig:
    return replace(quick, trunk_lr=1e-3)
