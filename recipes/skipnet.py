"""SkipNet: gates put before the blocks of a pretrained net, trained with labels, then by hybrid reinforcement learning.

The net comes pretrained, so that far fewer steps do than the paper's 64,000 and 10,000. ``ablation`` also trains by
reinforcement learning from scratch (net and gates untrained), which the paper found to give the worst of both worlds.
Run `python recipes/skipnet.py` (`model=cifar:resnet38 checkpoint=FILE` for a net of one's own); a killed run goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

import dynext as dx
from dynext.recipe import recipe_cli


@dataclass(frozen=True, kw_only=True)
class Config:
    """Fashion-MNIST, the bundled ResNet-20 of width 32: seven of its nine blocks may be skipped."""

    model: str = "bundled:fashion_resnet20"
    checkpoint: Path | None = None
    gates: str = "recurrent"
    """Or the paper's feed-forward ones: I, II."""
    pretraining: int = 3000
    price: float = 0.2
    """Of running every gated block, in nats, during pre-training; the paper has none."""
    reinforcing: int = 1500
    alpha: float = 0.1
    """Reward of skipping every gated block, in nats."""
    lr: float = 2e-3
    trunk_lr: float = 5e-4
    batch: int = 128
    tuning: int = 1000
    """Steps that a control of equal cost gets to adapt its trunk."""
    ablation: bool = True
    ranked: int = 1000
    """Training samples by which the best fixed set of blocks is found."""
    rows: int | None = None
    test: int = 10_000
    seed: int = 0
    out: Path = Path("runs/skipnet")


PAPER = Config()
SMOKE = replace(
    PAPER, pretraining=3, reinforcing=3, tuning=2, batch=8, ranked=16, rows=64, test=64, out=Path("runs/smoke_skipnet")
)


def main(config: Config) -> dict[str, dict[str, float]]:
    opened = dx.open_model(config.model, checkpoint=config.checkpoint)
    train, test = dx.data.fashion_mnist("train"), dx.data.fashion_mnist("test").subset(torch.arange(config.test))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed))
    ranked, train = train.subset(order[: config.ranked]), train.subset(order[config.ranked :][: config.rows])
    example = torch.zeros(1, *opened.spec.shape)
    staged = dx.split(opened.model, example, granularity="block")

    net, histories = _trained(staged, train, config, "gates")
    print(*histories, sep="\n", flush=True)

    def tune(control: dx.DynamicNet) -> dx.DynamicNet:
        fit_config = _fit_config(config, config.tuning, f"control-{control.gates.spec['kind']}")
        return dx.train.skipnet_pretrain(control, train, fit_config, augment=dx.data.augment)[0]

    reports = dx.train.at_equal_cost(net, ranked, test, static=opened.model, tune=tune, seed=config.seed)
    if config.ablation:
        name, own, like = f"cifar:{opened.recipe['name']}", opened.recipe["arguments"], opened.spec
        fresh = dx.open_model(name, arguments=own, shape=like.shape, mean=like.mean, std=like.std).model
        alone = replace(config, pretraining=0, reinforcing=config.pretraining + config.reinforcing)
        net, histories = _trained(dx.split(fresh, example, granularity="block"), train, alone, "scratch")
        print("from scratch:", *histories, sep="\n", flush=True)
        policy = dx.Policy.skipping(net.num_exits, net.num_gates)
        table = dx.collect(net, test, keep=policy.keep_g, static=opened.model)
        reports["reinforcement learning from scratch"] = dx.report(table, policy)
    for name, report in reports.items():
        print(f"\n{name}\n{report}", flush=True)
    return {
        name: {
            "accuracy": report.accuracy,
            "points_lost": 100 * (report.static_accuracy - report.accuracy),
            "macs_saved": report.saved,
            "blocks_run": 1 - (len(report.kept) - sum(report.kept)) / (len(staged.stages) - 2),  # no stem, no head
            "paths": report.paths,
        }
        for name, report in reports.items()
    }


def _trained(
    staged: dx.graph.StagedNet, train: dx.data.Samples, config: Config, name: str
) -> tuple[dx.DynamicNet, list[dx.train.GateHistory]]:
    """Gates before all blocks but the first, trained in two parts, the second at a gentler rate; or in one."""
    kinds = {
        "recurrent": dx.gates.recurrent_gates,
        "I": lambda: dx.gates.feedforward_gates("I"),
        "II": dx.gates.feedforward_gates,
    }
    net = dx.attach_gates(staged, kinds[config.gates](), at=staged.skippable[1:], seed=config.seed)
    histories, hybrid = [], _fit_config(config, config.reinforcing, f"{name}-hybrid")
    if config.pretraining:
        supervised = _fit_config(config, config.pretraining, f"{name}-supervised")
        net, history = dx.train.skipnet_pretrain(net, train, supervised, augment=dx.data.augment, price=config.price)
        histories, hybrid = [history], replace(hybrid, lr=config.lr / 4, trunk_lr=config.trunk_lr / 4)
    reward = dx.train.SkipNetReward(alpha=config.alpha, weight=1.0, baseline=True)
    net, history = dx.train.skipnet_reinforce(net, train, hybrid, augment=dx.data.augment, reward=reward)
    return net, [*histories, history]


def _fit_config(config: Config, steps: int, name: str) -> dx.FitConfig:
    return dx.FitConfig(
        steps=steps,
        lr=config.lr,
        trunk_lr=config.trunk_lr,
        batch_size=config.batch,
        seed=config.seed,
        checkpoint=config.out / f"{name}.ckpt",
    )


if __name__ == "__main__":
    recipe_cli(PAPER, SMOKE, main)
