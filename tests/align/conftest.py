"""The smallest net that can be aligned, and samples of its job; where a class's color shows, nets learn in a few
steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from methods import METHODS, setting

import dynext as dx


@pytest.fixture
def net() -> dx.DynamicNet:
    return setting(METHODS["joint"])[0]


@pytest.fixture
def samples() -> dx.data.Samples:
    return setting(METHODS["joint"])[1]


@pytest.fixture
def quick() -> Callable[..., dx.align.Alignment]:
    """`dx.align.align_exits` with little work; the term's settings are given as keywords."""
    names = {field.name for field in fields(dx.align.AlignmentTerm)}

    def run(net: dx.DynamicNet, source: dx.Source, **given: object) -> dx.align.Alignment:
        settings = {"hidden": 12, "size": 8, **{name: given.pop(name) for name in names & given.keys()}}
        options = {"steps": 4, "batch_size": 16, "progress": False, **given}
        return dx.align.align_exits(net, source, term=dx.align.AlignmentTerm(**settings), **options)

    return run


@pytest.fixture
def x(samples: dx.data.Samples) -> torch.Tensor:
    return samples.take(torch.arange(12)).x
