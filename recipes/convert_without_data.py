"""The main job, measured: the bundled Fashion-MNIST net made dynamic with no image, with 500 unlabelled ones, with all.

Thresholds are chosen without a label and frozen before the test samples are seen.
Run `python recipes/convert_without_data.py`; stopped, the same command goes on after the last line it finished.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

import dynext as dx
from dynext.recipe import recipe_cli


@dataclass(frozen=True, kw_only=True)
class Config:
    """Three seeds, the whole test set, at most one point to lose."""

    model: str = "bundled:fashion_resnet20"
    seeds: tuple[int, ...] = (0, 1, 2)
    ways: tuple[str, ...] = ("a", "b", "c", "d")
    samples: int = 8192
    steps: int = 1000
    calibration: int = 500
    max_drop: float = 0.01
    reference: int = 16384
    """Real unlabelled training images for the reference line (d)."""
    test: int = 10_000
    timing_s: float = 6.0
    method: str = "fitted"
    out: Path = Path("runs/convert_without_data.json")
    """Every line, as it is finished; beside it a table in Markdown."""


PAPER = Config()
SMOKE = replace(
    PAPER, seeds=(0,), ways=("b", "c"), samples=64, steps=3, calibration=40, reference=64, test=64, timing_s=0.1,
    method="leaves", max_drop=0.1, out=Path("runs/smoke_convert.json"),
)  # fmt: skip

TITLES = {
    "a": "no image at all",
    "b": "500 unlabelled images, for temperatures and thresholds only",
    "c": "the same 500, also distilled on",
    "d": "reference: many other unlabelled training images distilled on",
}


def main(config: Config) -> dict[str, dict[str, float]]:
    opened = dx.open_model(config.model)
    train = dx.data.fashion_mnist("train").unlabelled()
    test = dx.data.fashion_mnist("test").subset(torch.arange(config.test))
    images = test.take(torch.arange(min(len(test), 512))).x
    asked = {k: str(v) for k, v in asdict(config).items() if k not in ("seeds", "ways", "out")}
    lines = _earlier(config.out, asked)
    for seed in config.seeds:
        done = {line["way"] for line in lines if line["seed"] == seed}
        for way, conversion, seconds in _conversions(opened, train, config, seed, done):
            result = dx.report(dx.collect(conversion.net, test), conversion.policy)
            timing = dx.side_by_side(opened.model, conversion.net, conversion.policy, images, budget_s=config.timing_s)
            line = {
                "seed": seed,
                "way": way,
                "accuracy": result.accuracy,
                "points_lost": 100 * (result.static_accuracy - result.accuracy),
                "saved": result.saved,
                "speedup_1": timing[0].speedup,
                "speedup_64": timing[1].speedup,
                "seconds": seconds,
                "exits": [exit.right_of_all for exit in result.exits],
            }
            lines.append(line)
            print(line, flush=True)
            _keep(config, asked, lines)
    return _summary(lines)


def _earlier(out: Path, asked: dict[str, str]) -> list[dict]:
    """What an earlier run with the same settings has finished."""
    kept = json.loads(out.read_text()) if out.exists() else {}
    return kept["lines"] if kept.get("config") == asked else []


def _keep(config: Config, asked: dict[str, str], lines: list[dict]) -> None:
    summary = _summary(lines)
    machine = f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    kept = {"config": asked, "machine": machine, "summary": summary, "lines": lines}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text(json.dumps(kept, indent=1) + "\n")
    columns = list(next(iter(summary.values())))
    page = ["| way | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    page += [f"| {TITLES[w]} | " + " | ".join(f"{row[c]:.4g}" for c in columns) + " |" for w, row in summary.items()]
    config.out.with_suffix(".md").write_text("\n".join([f"Means over seeds; {machine}.", "", *page]) + "\n")


def _conversions(
    opened: dx.Opened, train: dx.data.Samples, config: Config, seed: int, done: set[str]
) -> Iterator[tuple[str, dx.Conversion, float]]:
    """The four ways, each from scratch and timed as a user would wait for it."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train), generator=draw)
    calibration = train.subset(order[: config.calibration])
    many = train.subset(order[config.calibration : config.calibration + config.reference])
    ways = {
        "a": {},
        "b": {"calibrate": calibration},
        "c": {"calibrate": dx.Unlabelled(calibration, distill=True)},
        "d": {"calibrate": calibration, "synthesis": many},
    }
    synthesis = dx.Synthesis(method=config.method, n=config.samples)
    for key in [key for key in ways if key in config.ways and key not in done]:
        began = time.monotonic()
        conversion = dx.convert(
            opened.model,
            opened.spec,
            training=dx.Frozen(steps=config.steps),
            target=dx.Target(max_drop=config.max_drop),
            run=dx.Run(seed=seed, progress=False),
            **{"synthesis": synthesis, **ways[key]},
        )
        yield key, conversion, time.monotonic() - began


def _summary(lines: list[dict]) -> dict[str, dict[str, float]]:
    """Mean over seeds by way, and the deviation of what counts most where there are several."""
    found = {}
    for way in sorted({line["way"] for line in lines}):
        group = [line for line in lines if line["way"] == way]
        names = set(group[0]) - {"seed", "way", "exits"}
        found[way] = {name: statistics.fmean(line[name] for line in group) for name in group[0] if name in names}
        found[way] |= {
            f"exit{e}": statistics.fmean(line["exits"][e] for line in group) for e in range(len(group[0]["exits"]))
        }
        for name in ("points_lost", "saved"):
            found[way][f"{name}_sd"] = statistics.stdev(line[name] for line in group) if len(group) > 1 else 0.0
    return found


if __name__ == "__main__":
    recipe_cli(PAPER, SMOKE, main)
