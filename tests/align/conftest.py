"""The smallest net that can be aligned, and samples of its job; where a class's color shows, nets learn in a few
steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from methods import METHODS, setting

import dynext as dx


@pytest.fixture
def net() -> dx.DynamicNet:
    return setting(METHODS["joint"])[0]


@pytest.fixture
def rows() -> dx.data.Samples:
    return setting(METHODS["joint"])[1]


@pytest.fixture
def quick() -> Callable[..., dx.align.Alignment]:
    """`dx.align.align_exits` with little work."""
    return partial(dx.align.align_exits, steps=4, batch_size=16, hidden=12, size=8, progress=False)


@pytest.fixture
def x(rows: dx.data.Samples) -> torch.Tensor:
    return rows.take(torch.arange(12)).x
