"""Exits, pruned channels and 8 bits together: a static net made dynamic, then smaller, without labels.

500 unlabelled images (those that ship with dynext) are all it sees; milliseconds are those of the static float net and
of the result side by side. Run `python recipes/prune_small.py budget=0.5`; a killed fine-tuning goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

import dynext as dx
from dynext.recipe import recipe_cli


@dataclass(frozen=True, kw_only=True)
class Config:
    """The bundled net, exits where a third and two thirds of its work are done."""

    model: str = "bundled:fashion_resnet20"
    after: tuple[float, ...] = (0.15, 0.3, 0.45, 0.6)
    budget: float = 0.5
    """Share of the full net's MACs that pruning leaves."""
    by: Literal["magnitude", "bn", "taylor"] = "magnitude"
    bits: Literal["int8"] | None = "int8"
    bank: int = 4096
    """Synthesized samples, beside the images, to learn from."""
    exit_steps: int = 2000
    steps: int = 2000
    lr: float = 1e-3
    max_drop: float = 0.01
    test: int = 2000
    seed: int = 0
    folder: Path = Path("runs/prune_small")


PAPER = Config()
SMOKE = replace(
    PAPER, after=(0.3, 0.6), budget=0.8, bank=32, exit_steps=2, steps=2, test=64, folder=Path("runs/smoke_prune_small")
)


def main(config: Config) -> dict[str, object]:
    opened = dx.open_model(config.model)
    images, test = dx.data.bundled_sample()
    test = test.subset(torch.arange(config.test))
    bank = dx.synthesize(
        opened.model, shape=opened.spec.shape, n=config.bank, seed=config.seed, spec=opened.spec, method="fitted"
    )
    staged = dx.split(opened.model, torch.zeros(1, *opened.spec.shape), after=config.after)
    net = dx.attach(staged, dx.default_heads(opened.num_classes), seed=config.seed)
    net = dx.distill(net, opened.model, bank, steps=config.exit_steps, seed=config.seed)
    net = dx.distill(net, opened.model, images, steps=config.exit_steps, seed=config.seed)
    pruned = dx.prune.make_smaller(
        net,
        images,
        remove=dx.prune.Removal(budget=config.budget, by=config.by),
        bits=config.bits,
        steps=config.steps,
        lr=config.lr,
        seed=config.seed,
        checkpoint=config.folder / "finetune.ckpt",
    )
    print(pruned)
    seen = dx.collect(pruned.net, images)
    policy = dx.choose(seen, max_drop=config.max_drop, temperature=dx.calibrate(seen))
    report = dx.report(dx.collect(pruned.net, test, rows=f"{len(test):,} test images"), policy)
    print(report)
    static = float(dx.collect(net, test).right_ne[:, -1].double().mean())
    x = test.take(torch.arange(64)).x
    timings = dx.side_by_side(opened.model, pruned.net, policy, x, batches=(1,))
    dx.save(pruned.net, config.folder / "net", policy=policy, spec=opened.spec, model_recipe=opened.recipe, table=seen)
    return {
        "static_accuracy": static,
        "full_net_after": report.static_accuracy,
        "accuracy": report.accuracy,
        "macs_share": report.macs / staged.macs,
        "speedup_batch_1": timings[0].speedup,
        "net": str(config.folder / "net"),
    }


if __name__ == "__main__":
    recipe_cli(PAPER, SMOKE, main)
