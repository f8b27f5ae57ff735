"""The main job, measured: the bundled Fashion-MNIST net made dynamic with no image, with 500 unlabelled ones, with all.

Thresholds are chosen without a label and frozen before the test rows are seen.
Run `python recipes/convert_without_data.py`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

import dynext as dx


@dataclass(frozen=True, kw_only=True)
class Config:
    """Three seeds, the whole test set, at most one point to lose."""

    model: str = "bundled:fashion_resnet20"
    seeds: tuple[int, ...] = (0, 1, 2)
    rows: int = 8192
    steps: int = 1000
    calibration: int = 500
    max_drop: float = 0.01
    reference: int = 16384
    """Real unlabelled training images for the reference line (d)."""
    test: int = 10_000
    timing_s: float = 6.0
    method: str = "fitted"


PAPER = Config()
SMOKE = replace(
    PAPER, seeds=(0,), rows=64, steps=3, calibration=40, reference=64, test=64, timing_s=0.1, method="leaves"
)

TITLES = {
    "a": "no image at all",
    "b": "500 unlabelled images, for temperatures and thresholds only",
    "c": "the same 500, also distilled on",
    "d": "reference: {reference:,} unlabelled training images distilled on",
}


def main(config: Config) -> dict[str, dict[str, float]]:
    opened = dx.open_model(config.model)
    train = dx.data.fashion_mnist("train").unlabelled()
    test = dx.data.fashion_mnist("test").subset(torch.arange(config.test))
    rows = test.take(torch.arange(min(len(test), 512))).x
    found: dict[str, list[dict[str, float]]] = {key: [] for key in TITLES}
    for seed in config.seeds:
        for key, conversion, seconds in _conversions(opened, train, config, seed):
            result = dx.report(dx.collect(conversion.net, test), conversion.policy)
            timing = dx.side_by_side(opened.model, conversion.net, conversion.policy, rows, budget_s=config.timing_s)
            figures = {
                "accuracy": result.accuracy,
                "points_lost": 100 * (result.static_accuracy - result.accuracy),
                "saved": result.saved,
                "speedup_1": timing[0].speedup,
                "speedup_64": timing[1].speedup,
                "seconds": seconds,
                **{f"exit{e}": line.right_of_all for e, line in enumerate(result.exits)},
            }
            found[key].append(figures)
            print(f"seed {seed} ({key}) " + "  ".join(f"{k} {v:.3f}" for k, v in figures.items()), flush=True)
    return {key: _summary(lines) for key, lines in found.items()}


def _conversions(
    opened: dx.Opened, train: dx.data.Rows, config: Config, seed: int
) -> Iterator[tuple[str, dx.Conversion, float]]:
    """The four ways, each from scratch and timed as a user would wait for it."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train), generator=draw)
    calibration = train.subset(order[: config.calibration])
    many = train.subset(order[: config.reference])
    ways = {
        "a": {},
        "b": {"calibrate": calibration},
        "c": {"calibrate": calibration, "distill_on_calibration": True},
        "d": {"calibrate": calibration, "distill_on": many},
    }
    for key, way in ways.items():
        began = time.monotonic()
        conversion = dx.convert(
            opened.model,
            spec=opened.spec,
            n=config.rows,
            steps=config.steps,
            method=config.method,
            max_drop=config.max_drop,
            seed=seed,
            progress=False,
            **way,
        )
        yield key, conversion, time.monotonic() - began


def _summary(lines: list[dict[str, float]]) -> dict[str, float]:
    """Mean over seeds, and the deviation where there are several."""
    means = {name: statistics.fmean(line[name] for line in lines) for name in lines[0]}
    if len(lines) > 1:
        means |= {f"{name}_std": statistics.stdev(line[name] for line in lines) for name in ("points_lost", "saved")}
    return means


if __name__ == "__main__":
    dx.recipe_cli(PAPER, SMOKE, main)
