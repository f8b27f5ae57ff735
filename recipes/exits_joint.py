"""Early exits trained together with their trunk, on labels: one backbone, any of the published methods by its name.

Thresholds are chosen on samples held out of the training set, for half a point to lose; everything is measured on test
samples. Run `python recipes/exits_joint.py method=boostnet`; a killed run goes on.
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
    """A CIFAR ResNet on Fashion-MNIST by the schedule that MSDNet, IMTA and the distillation papers share."""

    method: Literal[
        "joint", "branchynet", "shallow_deep", "distillation_last", "distillation_later", "semi_supervised",
        "own_teacher", "scan", "imta", "boostnet", "mixed",
    ] = "joint"  # fmt: skip
    depth: int = 20
    width: int = 16
    after: tuple[float, ...] = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
    """Where exits stand, as shares of the MACs: Shallow-Deep's places."""
    epochs: int = 300
    second_epochs: int = 90
    """Of the second step of `imta`, and of the backbone's own training in `mixed`."""
    lr: float = 0.1
    batch: int = 64
    weight_decay: float = 1e-4
    held_out: int = 5000
    """Training samples kept apart for temperatures and thresholds."""
    unlabelled: float = 0.5
    """Share of the training samples that `semi_supervised` sees without their labels."""
    max_drop: float = 0.005
    rows: int | None = None
    seed: int = 0
    folder: Path = Path("runs/exits_joint")


PAPER = Config()
SMOKE = replace(
    PAPER, depth=8, width=4, after=(0.3, 0.6), epochs=1, second_epochs=1, held_out=64, rows=256,
    folder=Path("runs/smoke_exits_joint"),
)  # fmt: skip


def main(config: Config) -> dict[str, object]:
    train, test = dx.data.fashion_mnist("train"), dx.data.fashion_mnist("test")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed))
    if config.rows is not None:
        order, test = order[: config.rows], test.subset(torch.arange(config.rows))
    held_out, taught = train.subset(order[: config.held_out]), train.subset(order[config.held_out :])

    net = trained(untrained(config, test.spec), taught, config)
    seen = dx.collect(net, held_out, rows=f"{len(held_out):,} held-out training images")
    calibration = dx.calibrate(seen)
    policy = dx.choose(seen, max_drop=config.max_drop, temperature=calibration)
    table = dx.collect(net, test, rows=f"{len(test):,} Fashion-MNIST test images")
    report = dx.report(table, policy)
    print(report)
    model = {"kind": "cifar", "name": f"resnet{config.depth}", "arguments": {"width": config.width, "channels": 1}}
    where = config.folder / config.method
    dx.save(net, where / "net", policy=policy, spec=test.spec, model_recipe=model, table=seen)
    return {
        "method": config.method,
        "exits": table.right_ne.double().mean(0).tolist(),
        "ece": dx.calibrate(table).ece_before_e,
        "ece_calibrated": [line.ece for line in report.exits],
        "accuracy": report.accuracy,
        "saved": report.saved,
        "net": str(where / "net"),
    }


def untrained(config: Config, spec: dx.InputSpec) -> dx.DynamicNet:
    with dx.seeded(config.seed):
        model = dx.models.ResNet(config.depth, width=config.width, channels=1)
    staged = dx.split(model.eval(), torch.zeros(1, *spec.shape), after=config.after)
    heads = dx.heads.attention_heads(10) if config.method == "scan" else dx.default_heads(10)
    return dx.attach(staged, heads, seed=config.seed)


def trained(net: dx.DynamicNet, samples: dx.data.Samples, config: Config) -> dx.DynamicNet:
    first = fit_config(config, config.epochs, len(samples), "first")
    second = fit_config(config, config.second_epochs, len(samples), "second")
    augment = dx.data.augment
    if config.method == "branchynet":
        weights = torch.linspace(1.0, 0.3, net.num_exits).tolist()  # as published for the first and the last
        return dx.train.joint(net, samples, first, weight_e=weights, augment=augment)
    if config.method == "shallow_deep":
        return dx.train.shallow_deep(net, samples, first, trunk="joint", most_confident=True, augment=augment)
    if config.method.startswith("distillation"):
        teachers = config.method.removeprefix("distillation_")
        return dx.train.multi_exit_distillation(net, samples, first, teachers=teachers, augment=augment)
    if config.method == "semi_supervised":
        cut = round(config.unlabelled * len(samples))
        bare = samples.subset(torch.arange(cut)).unlabelled()
        labelled = samples.subset(torch.arange(cut, len(samples)))
        return dx.train.multi_exit_distillation(net, labelled, first, unlabelled=bare, augment=augment)
    if config.method == "own_teacher":
        return dx.train.be_your_own_teacher(net, samples, first, augment=augment)
    if config.method == "scan":
        return dx.train.scan(net, samples, first, augment=augment)
    if config.method == "imta":
        return dx.train.imta(net, samples, first, heads=second, augment=augment)
    if config.method == "boostnet":
        return dx.train.boostnet(net, samples, first, augment=augment)
    if config.method == "mixed":
        return dx.train.mixed(net, samples, first, backbone=second, augment=augment)
    return dx.train.joint(net, samples, first, augment=augment)


def fit_config(config: Config, epochs: int, num_samples: int, step: str) -> dx.FitConfig:
    return dx.FitConfig(
        steps=epochs * num_samples // config.batch,
        lr=config.lr,
        batch_size=config.batch,
        optimizer="sgd",
        schedule="milestones",  # a tenth of the rate at a half and at three quarters
        weight_decay=config.weight_decay,
        seed=config.seed,
        checkpoint=config.folder / config.method / f"{step}.ckpt",
    )


if __name__ == "__main__":
    recipe_cli(PAPER, SMOKE, main)
