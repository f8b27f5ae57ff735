"""The open claim: does a start that was meta-learned on some exits learn an exit it has never seen in fewer steps?

One exit of a Fashion-MNIST net is held out: from meta-training in one net, from joint training in the other, for the
same time. Then its head learns from a few samples, by the same steps in both; accuracy after each is on test samples.
Run `python recipes/meta_held_out_exit.py seed=1`; a killed run goes on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

import dynext as dx
from dynext.recipe import recipe_cli


@dataclass(frozen=True, kw_only=True)
class Config:
    """A CIFAR ResNet-14 with exits after its first two stages and inside the second; that one is held out."""

    depth: int = 14
    width: int = 16
    after: tuple[str, ...] = ("layer1", "layer2.0", "layer2")
    held_out: int = 1
    inner_steps: int = 3
    inner_lr: float = 0.1
    steps: int = 3000
    lr: float = 1e-3
    support: int = 100
    """Samples that the held-out exit learns from, at each step all of them."""
    after_steps: tuple[int, ...] = (1, 3, 5)
    lrs: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    """Step sizes that are tried for either net on samples held out of the training set; the best one is reported."""
    bn: Literal["frozen", "task"] = "frozen"
    """Statistics that the held-out exit learns and answers on: each net's own, or those of the support samples."""
    rows: int | None = None
    test: int = 10_000
    seed: int = 0
    folder: Path = Path("runs/meta_held_out_exit")


PAPER = Config()
SMOKE = replace(
    PAPER, depth=8, width=4, after=("layer1", "layer2"), inner_steps=1, steps=2, support=40, after_steps=(1, 2),
    lrs=(0.1,), rows=400, test=50, folder=Path("runs/smoke_meta_held_out"),
)  # fmt: skip


def main(config: Config) -> dict[str, object]:
    train = dx.data.fashion_mnist("train")
    test = dx.data.fashion_mnist("test").subset(torch.arange(config.test))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed))[: config.rows]
    support, checked = (
        train.subset(order[: config.support]),
        train.subset(order[config.support :][: 2 * config.support]),
    )
    taught = train.subset(order[3 * config.support :])
    with dx.seeded(config.seed):
        model = dx.models.ResNet(config.depth, width=config.width, channels=1).eval()
    staged = dx.split(model, torch.zeros(1, *train.shape), after=config.after)
    net = dx.attach(staged, dx.default_heads(10), seed=config.seed)
    exits = [[e] for e in range(net.num_exits) if e != config.held_out]
    starts, seconds = {}, {}

    begun = time.process_time()
    inner = dx.meta.InnerLoop(steps=config.inner_steps, lr=config.inner_lr)
    episodes = dx.data.SameClasses(rows=taught, support=64, query=64)
    fitting = dx.FitConfig(
        steps=config.steps, lr=config.lr, seed=config.seed, checkpoint=config.folder / f"meta{config.seed}.ckpt"
    )
    starts["meta-learned"] = dx.meta.meta_train(net, episodes, fitting, inner=inner, exits=exits, batch=1).net
    seconds["meta-learned"] = time.process_time() - begun

    begun = time.process_time()
    weights = [float(e != config.held_out) for e in range(net.num_exits)]
    # For about equal time: a meta-step with cached features costs about 2.5 joint steps of as many samples here.
    joint = replace(fitting, steps=5 * config.steps // 2, checkpoint=config.folder / f"joint{config.seed}.ckpt")
    starts["joint"] = dx.train.joint(net, taught, joint, weight_e=weights, batch_size=128)
    seconds["joint"] = time.process_time() - begun

    accuracies = {name: learned(start, support, checked, test, config) for name, start in starts.items()}
    print(accuracies)
    return {"accuracy": accuracies, "seconds": seconds, "held_out": config.held_out}


def learned(
    start: dx.DynamicNet, support: dx.data.Samples, checked: dx.data.Samples, test: dx.data.Samples, config: Config
) -> dict[int, float]:
    """Accuracy at the held-out exit after each number of steps, at the step size that was best on other samples."""
    never = dx.Policy.never(start.num_exits)
    accuracy_after = {}
    for steps in config.after_steps:
        best = (-1.0, start)
        for lr in config.lrs:
            kept = {"method": "head", "classifiers": "kept", "policy": never, "bn": config.bn}
            net = dx.meta.adapt(start, support, steps=steps, lr=lr, **kept).net
            best = max(best, (accuracy(net, checked, config), net), key=lambda pair: pair[0])
        accuracy_after[steps] = accuracy(best[1], test, config)
    return accuracy_after


def accuracy(net: dx.DynamicNet, samples: dx.data.Samples, config: Config) -> float:
    return float(dx.collect(net, samples).right_ne[:, config.held_out].double().mean())


if __name__ == "__main__":
    recipe_cli(PAPER, SMOKE, main)
