"""Fixtures every room shares: folders and data sets that may be absent skip the tests that need them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from dynext.data.datasets import fashion_mnist
from dynext.data.samples import Samples
from dynext.errors import SourceError

ROOT = Path(__file__).resolve().parents[1]

settings.register_profile("dynext", deadline=None, max_examples=50)
settings.load_profile("dynext")

SEED = int(os.environ.get("DYNEXT_TEST_SEED", "0"))
"""Of torch's global generator, before every test; another one finds the tests that pass by luck."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Fixtures start from the seed, whichever tests ran before in the same process."""
    torch.manual_seed(SEED)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Tests too, whether their fixtures were made for them or are shared."""
    torch.manual_seed(SEED)


@dataclass(frozen=True, kw_only=True)
class Fashion:
    """Fashion-MNIST as installed: 60,000 training and 10,000 test samples."""

    train: Samples
    test: Samples


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with development data: ``$DYNEXT_SHARED``, or ``shared`` beside the repo."""
    folder = Path(os.environ.get("DYNEXT_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no development data in {folder}; name its folder in DYNEXT_SHARED")
    return folder


@pytest.fixture(scope="session")
def fashion() -> Fashion:
    """Training and test samples of Fashion-MNIST, where it is installed; never downloaded."""
    try:
        return Fashion(train=fashion_mnist("train"), test=fashion_mnist("test"))
    except SourceError as error:
        pytest.skip(str(error))
