"""The bundled net taught to skip blocks without its training data: three ways to skip, from no image and from 500.

Which samples skip and how far is chosen without a label and frozen before the test samples are seen; "skips nothing" is
a possible, honest outcome. Run `python recipes/convert_skip.py`; stopped, the same command goes on after the last line.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

import dynext as dx
from dynext.recipe import recipe_cli


@dataclass(frozen=True, kw_only=True)
class Config:
    """Three seeds, the whole test set, at most one point to lose."""

    model: str = "bundled:fashion_resnet20"
    kinds: tuple[str, ...] = ("static", "skipnet", "blockdrop")
    images: tuple[int, ...] = (0, 500)
    """Unlabelled ones, to choose by; none are learned from."""
    seeds: tuple[int, ...] = (0, 1, 2)
    method: str = "fitted"
    rows: int = 8192
    steps: int = 1000
    skip_steps: int = 1500
    max_drop: float = 0.01
    test: int = 10_000
    timing_s: float = 6.0
    out: Path = Path("runs/convert_skip.json")


PAPER = Config()
SMOKE = replace(
    PAPER, kinds=("skipnet", "blockdrop"), images=(40,), seeds=(0,), method="leaves", rows=64, steps=2, skip_steps=3,
    max_drop=1.0, test=64, timing_s=0.1, out=Path("runs/smoke_convert_skip.json"),
)  # fmt: skip


def main(config: Config) -> list[dict]:
    opened = dx.open_model(config.model)
    train = dx.data.fashion_mnist("train").unlabelled()
    test = dx.data.fashion_mnist("test").subset(torch.arange(config.test))
    asked = {k: str(v) for k, v in asdict(config).items() if k not in ("kinds", "images", "seeds", "out")}
    kept = json.loads(config.out.read_text()) if config.out.exists() else {}
    lines = kept["lines"] if kept.get("config") == asked else []
    done = {(line["kind"], line["images"], line["seed"]) for line in lines}
    ways = [(k, n, s) for s in config.seeds for n in config.images for k in config.kinds if (k, n, s) not in done]
    for kind, images, seed in ways:
        began = time.monotonic()
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        conversion = dx.convert(
            opened.model,
            opened.spec,
            calibrate=train.subset(order[:images]) if images else None,
            synthesis=dx.Synthesis(method=config.method, n=config.rows),
            training=dx.Skip(kind, steps=config.steps, skip_steps=config.skip_steps),
            target=dx.Target(max_drop=config.max_drop),
            run=dx.Run(seed=seed, progress=False),
        )
        seconds = time.monotonic() - began
        line = {"kind": kind, "images": images, "seed": seed, "seconds": seconds}
        lines.append({**line, **_measured(conversion, opened.model, test, config.timing_s)})
        print(lines[-1], flush=True)
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(
            json.dumps({"config": asked, "torch": torch.__version__, "lines": lines}, indent=1) + "\n"
        )
    return lines


def _measured(conversion: dx.Conversion, static: torch.nn.Module, test: dx.data.Samples, timing_s: float) -> dict:
    """Accuracy by labels of samples that nothing was chosen on, beside the static net's, and speed."""
    net, policy = conversion.net, conversion.policy
    report = dx.report(dx.collect(net, test, keep=policy.skip_rule, static=static), policy)
    x = test.take(torch.arange(min(len(test), 512))).x
    single, batched = dx.side_by_side(static, net, policy, x, budget_s=timing_s)
    return {
        "skips": policy.skip_rule is not None,
        "exits_on": sum(policy.enabled_e) - 1,
        "accuracy": report.accuracy,
        "points_lost": 100 * (report.static_accuracy - report.accuracy),
        "saved": report.saved,
        "stages_run": None if report.kept is None else list(report.kept),
        "paths": report.paths,
        "speedup_1": single.speedup,
        "speedup_64": batched.speedup,
        "note": policy.note,
    }


if __name__ == "__main__":
    recipe_cli(PAPER, SMOKE, main)
