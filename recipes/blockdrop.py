"""BlockDrop: a policy network learns which blocks of a pretrained net an input needs, then both learn together.

The curriculum runs on the frozen net, one more block from the end at a time; steps and batches are fewer than the
paper's, whose policy network saw 2,048 samples a step for thousands of epochs.
Run `python recipes/blockdrop.py` (`model=cifar:resnet38 checkpoint=FILE` for a net of one's own); a killed run goes on.
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
    width: int = 8
    """Channels of the policy network's first stage; the paper has 16, which here would cost as much as half a block."""
    side: int = 14
    """Pixels a side that it sees."""
    curriculum: int = 2000
    joint: int = 2000
    penalty: float = 5.0
    """Of a wrong answer, in both parts. The paper has 1 in the curriculum and 10 behind it."""
    lr: float = 1e-3
    joint_lr: float = 2e-4
    batch: int = 256
    joint_batch: int = 128
    tuning: int = 1000
    """Steps that a control of equal cost gets to adapt its trunk."""
    ranked: int = 1000
    """Training samples by which the best fixed set of blocks is found."""
    rows: int | None = None
    test: int = 10_000
    seed: int = 0
    out: Path = Path("runs/blockdrop")


PAPER = Config()
SMOKE = replace(
    PAPER, curriculum=3, joint=3, tuning=2, batch=8, joint_batch=8, ranked=16, rows=64, test=64,
    out=Path("runs/smoke_blockdrop"),
)  # fmt: skip


def main(config: Config) -> dict[str, dict[str, float]]:
    opened = dx.open_model(config.model, checkpoint=config.checkpoint)
    train, test = dx.data.fashion_mnist("train"), dx.data.fashion_mnist("test").subset(torch.arange(config.test))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed))
    ranked, train = train.subset(order[: config.ranked]), train.subset(order[config.ranked :][: config.rows])
    staged = dx.split(opened.model, torch.zeros(1, *opened.spec.shape), granularity="block")

    net = dx.attach_gates(staged, dx.gates.policy_gates(config.width, side=config.side), seed=config.seed)
    fit_config = dx.FitConfig(
        steps=config.curriculum,
        lr=config.lr,
        batch_size=config.batch,
        schedule="constant",
        seed=config.seed,
        checkpoint=config.out / "curriculum.ckpt",
    )
    given = {"augment": dx.data.augment, "penalty": config.penalty}
    net, history = dx.train.blockdrop_curriculum(net, train, fit_config, **given)
    print(history, flush=True)
    policy = dx.Policy.skipping(net.num_exits, net.num_gates)
    frozen = dx.report(dx.collect(net, test, keep=policy.keep_g, static=opened.model), policy)
    joint = dx.FitConfig(
        steps=config.joint,
        lr=config.joint_lr,
        trunk_lr=config.joint_lr,
        batch_size=config.joint_batch,
        seed=config.seed,
        checkpoint=config.out / "joint.ckpt",
    )
    net, history = dx.train.blockdrop_finetune(net, train, joint, **given)
    print(history, flush=True)

    def tune(control: dx.DynamicNet) -> dx.DynamicNet:
        path = config.out / f"control-{control.gates.spec['kind']}.ckpt"
        tuning = replace(joint, steps=config.tuning, checkpoint=path)
        return dx.train.skipnet_pretrain(control, train, tuning, augment=dx.data.augment)[0]

    compared = dx.train.at_equal_cost(net, ranked, test, static=opened.model, tune=tune, seed=config.seed)
    return figures({"after the curriculum": frozen, **compared}, num_blocks=len(staged.stages) - 2)  # no stem, no head


def figures(reports: dict[str, dx.Report], num_blocks: int) -> dict[str, dict[str, float]]:
    for name, report in reports.items():
        print(f"\n{name}\n{report}", flush=True)
    return {
        name: {
            "accuracy": report.accuracy,
            "points_lost": 100 * (report.static_accuracy - report.accuracy),
            "macs_saved": report.saved,
            "blocks_run": 1 - (len(report.kept) - sum(report.kept)) / num_blocks,
            "paths": report.paths,
        }
        for name, report in reports.items()
    }


if __name__ == "__main__":
    recipe_cli(PAPER, SMOKE, main)
