"""Early exits on a frozen net, learned from labels: Shallow-Deep's, Zero Time Waste's cascade, JEI-DNN's learned gates.

The last exit stays bit for bit. Thresholds are chosen on samples held out of the training set, for half a point to lose
(JEI-DNN brings its own); everything is measured on test samples.
Run `python recipes/exits_frozen.py method=zero_time_waste`; a killed run goes on.
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
    """The bundled Fashion-MNIST net, exits by Shallow-Deep's published schedule: Adam 1e-3, 25 epochs."""

    method: Literal["shallow_deep", "zero_time_waste", "jei_dnn"] = "shallow_deep"
    model: str = "bundled:fashion_resnet20"
    after: tuple[float, ...] = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
    epochs: int = 25
    lr: float = 1e-3
    batch: int = 128
    price: float = 0.5
    """What the whole net's MACs cost in units of cross-entropy (`jei_dnn`)."""
    taught: int = 20_000
    """Samples to learn from; their features are kept in memory."""
    held_out: int = 5000
    max_drop: float = 0.005
    test: int = 10_000
    seed: int = 0
    folder: Path = Path("runs/exits_frozen")


PAPER = Config()
SMOKE = replace(PAPER, after=(0.3, 0.6), epochs=1, taught=64, held_out=64, test=64, folder=Path("runs/smoke_frozen"))


def main(config: Config) -> dict[str, object]:
    opened = dx.open_model(config.model)
    train = dx.data.fashion_mnist("train")
    test = dx.data.fashion_mnist("test").subset(torch.arange(config.test))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed))
    held_out = train.subset(order[: config.held_out])
    taught = train.subset(order[config.held_out : config.held_out + config.taught])

    staged = dx.split(opened.model, torch.zeros(1, *opened.spec.shape), after=config.after)
    heads = dx.heads.pooled_heads(10) if config.method == "shallow_deep" else dx.default_heads(10)
    net, policy = trained(dx.attach(staged, heads, seed=config.seed), taught, config)
    seen = dx.collect(net, held_out, rows=f"{len(held_out):,} held-out training images")
    if policy is None:
        policy = dx.choose(seen, max_drop=config.max_drop, temperature=dx.calibrate(seen))
    table = dx.collect(net, test, rows=f"{len(test):,} Fashion-MNIST test images")
    report = dx.report(table, policy)
    print(report)
    where = config.folder / config.method
    dx.save(net, where / "net", policy=policy, spec=opened.spec, model_recipe=opened.recipe, table=seen)
    return {
        "method": config.method,
        "exits": table.right_ne.double().mean(0).tolist(),
        "accuracy": report.accuracy,
        "static_accuracy": report.static_accuracy,
        "saved": report.saved,
        "net": str(where / "net"),
    }


def trained(net: dx.DynamicNet, samples: dx.data.Samples, config: Config) -> tuple[dx.DynamicNet, dx.Policy | None]:
    fit_config = dx.FitConfig(
        steps=config.epochs * len(samples) // config.batch,
        lr=config.lr,
        batch_size=config.batch,
        seed=config.seed,
        checkpoint=config.folder / config.method / "run.ckpt",
    )
    if config.method == "jei_dnn":
        return dx.train.jei_dnn(net, samples, fit_config, price=config.price)
    if config.method == "zero_time_waste":
        return dx.train.zero_time_waste(net, samples, fit_config), None
    return dx.train.shallow_deep(net, samples, fit_config, most_confident=True), None


if __name__ == "__main__":
    recipe_cli(PAPER, SMOKE, main)
