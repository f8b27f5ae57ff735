"""The bundled sample of Fashion-MNIST: unlabelled samples to calibrate on, labelled samples to evaluate on.

Run `python recipes/bundle_sample.py` to make `data/fashion_sample.npz` anew; it prints the checksum that stands in
`data/README.md`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import dynext as dx
from dynext.atomic import replaced_file
from dynext.recipe import recipe_cli


@dataclass(frozen=True, kw_only=True)
class Config:
    """500 training images without their labels, 2,000 test images with them; drawn without regard to the class."""

    calibration: int = 500
    test: int = 2000
    seed: int = 0
    out: Path = Path("data/fashion_sample.npz")


PAPER = Config()
SMOKE = replace(PAPER, calibration=8, test=16, out=Path("runs/fashion_sample.npz"))


def main(config: Config) -> dict[str, float]:
    train, test = dx.data.fashion_mnist("train"), dx.data.fashion_mnist("test")
    draw = torch.Generator().manual_seed(config.seed)
    calibration = torch.randperm(len(train), generator=draw)[: config.calibration].sort().values
    evaluation = torch.randperm(len(test), generator=draw)[: config.test].sort().values
    with replaced_file(config.out) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            calibration=train.pixels[calibration, 0].numpy(),
            test_x=test.pixels[evaluation, 0].numpy(),
            test_y=test.y[evaluation].numpy().astype(np.uint8),
        )
    content = config.out.read_bytes()
    print(f"{config.out}: {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
    return {"bytes": len(content), "calibration": config.calibration, "test": config.test}


if __name__ == "__main__":
    recipe_cli(PAPER, SMOKE, main)
