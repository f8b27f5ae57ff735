"""A tiny net, made dynamic once by the command itself; clocks that do not take long."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from shell import SMALL, TINY, done


@pytest.fixture(scope="session", autouse=True)
def _quick_clocks() -> Iterator[None]:
    """Timings are the engine's business; here they only have to be there."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("commands.bench", "demo.chapters", "commands.convert"):
            module = importlib.import_module(f"dynext.cli.{name}")
            patch.setattr(module, "side_by_side", partial(module.side_by_side, budget_s=0.0, batches=(1, 4)))
        for name in ("cli.commands.bench", "zeroshot.convert_steps"):
            module = importlib.import_module(f"dynext.{name}")
            patch.setattr(module, "measure", partial(module.measure, rows=(1, 64), budget_ms=0.0))
        patch.setattr(importlib.import_module("dynext.zeroshot.thresholds"), "ROWS", 128)
        yield


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 labelled color images as a .npz file."""
    path = tmp_path_factory.mktemp("images") / "images.npz"
    draw = np.random.default_rng(0)
    np.savez(path, x=draw.integers(0, 256, (60, 3, 32, 32), dtype=np.uint8), y=draw.integers(0, 10, 60))
    return path


@pytest.fixture(scope="session")
def _converted(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    folder = tmp_path_factory.mktemp("made") / "net"
    done("convert", *TINY, "-o", folder, *SMALL, "--calibrate", images)
    return folder


@pytest.fixture
def net(_converted: Path, tmp_path: Path) -> Path:
    """A folder with a dynamic net, the test's own."""
    return Path(shutil.copytree(_converted, tmp_path / "net"))
