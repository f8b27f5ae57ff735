"""Few-shot learning at every exit: a Conv-4 with three early exits, meta-trained on one part of Omniglot, tested on
another, per exit and under a budget.

Thresholds come from episodes of the classes that were trained on; the tested classes are seen in the end only.
Run `python recipes/meta_few_shot.py root=FOLDER method=prototypes`; a killed run goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

import dynext as dx
from dynext.recipe import recipe_cli


@dataclass(frozen=True, kw_only=True)
class Config:
    """MAML's schedule on a Conv-4 whose blocks cost about the same; exits after each block but the last."""

    method: Literal["heads", "maml", "first_order", "reptile", "anil", "meta_sgd", "prototypes"] = "heads"
    data: Literal["omniglot", "digits"] = "omniglot"
    root: Path | None = None
    train_part: Literal["background", "small1"] = "background"
    test_part: Literal["evaluation", "small2"] = "evaluation"
    channels: int = 64
    """Of the second block."""
    way: int = 5
    shot: int = 1
    query: int = 15
    steps: int = 60_000
    lr: float = 1e-3
    inner_steps: int = 5
    inner_lr: float = 0.4
    batch: int = 16
    """Episodes of a step."""
    episodes: int = 600
    budget: float = 0.6
    """Share of the MACs for the policy that is reported."""
    seed: int = 0
    folder: Path = Path("runs/meta_few_shot")


PAPER = Config()
SMOKE = replace(
    PAPER, data="digits", channels=4, way=3, shot=2, query=4, steps=2, inner_steps=1, inner_lr=0.1, batch=1,
    episodes=5, budget=1.0, folder=Path("runs/smoke_meta_few_shot"),
)  # fmt: skip


class Conv4(nn.Module):
    """Four blocks of a strided 3x3 convolution, BatchNorm and ReLU, and a linear layer on the mean."""

    def __init__(self, channels: int, way: int) -> None:
        super().__init__()
        sizes = [1, channels // 2, channels, 2 * channels, 4 * channels]
        for i in range(4):
            block = nn.Sequential(nn.Conv2d(sizes[i], sizes[i + 1], 3, 2, 1), nn.BatchNorm2d(sizes[i + 1]), nn.ReLU())
            self.add_module(f"block{i + 1}", block)
        self.linear = nn.Linear(sizes[-1], way)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block4(self.block3(self.block2(self.block1(x))))
        return self.linear(x.mean((2, 3)))


def main(config: Config) -> dict[str, object]:
    taught, tested = class_samples(config)
    with dx.seeded(config.seed):
        model = Conv4(config.channels, config.way).eval()
    staged = dx.split(model, torch.zeros(1, *taught.shape), after=["block1", "block2", "block3"])
    # Deeper heads would cost more than the trunk, and no exit would be cheap.
    heads = dx.heads.conv_heads(config.way, hidden=config.channels // 2, separable=0)
    net = dx.attach(staged, heads, seed=config.seed)
    sized = {"way": config.way, "shot": config.shot, "query": config.query}
    changes = {} if config.method == "prototypes" else {"steps": config.inner_steps, "lr": config.inner_lr}
    inner = dx.meta.InnerLoop.of(config.method, **changes)
    # The start is adapted as one net: where tasks change the trunk as well, all exits are one task.
    exits = [range(net.num_exits)] if inner.adapts == "used" else None
    print(dx.meta.ownership(net, exits, adapts=inner.adapts))
    fitting = dx.FitConfig(
        steps=config.steps, lr=config.lr, seed=config.seed, checkpoint=config.folder / f"{config.method}.ckpt"
    )
    start = dx.meta.meta_train(
        net, dx.data.Episodes(rows=taught, **sized), fitting, inner=inner, exits=exits, batch=config.batch
    )

    seen = dx.meta.evaluate_episodes(start, dx.data.Episodes(rows=taught, seed=1, **sized), count=config.episodes)
    policy = dx.choose(seen.table, budget=config.budget, temperature=dx.calibrate(seen.table), rule="plain")
    on_new = dx.meta.evaluate_episodes(start, dx.data.Episodes(rows=tested, seed=2, **sized), count=config.episodes)
    dynamic, spent = on_new.under(policy)
    for e, share in enumerate(on_new.accuracy_e):
        print(f"exit {e} ({start.net.exit_names[e]}): {share}")
    print(f"under a budget of {config.budget:.0%}: {dynamic} at {spent:.1%} of the MACs")
    return {
        "method": config.method,
        "exits": [(share.mean, share.half) for share in on_new.accuracy_e],
        "dynamic": (dynamic.mean, dynamic.half),
        "macs": spent,
    }


def class_samples(config: Config) -> tuple[dx.data.Samples, dx.data.Samples]:
    """Samples of the classes to train on, turned ones among them, and of those to test on."""
    if config.data == "digits":
        taught, tested = dx.data.split_classes(dx.data.digits(side=16), [6, 4], seed=config.seed)
        return taught, tested
    taught, tested = (dx.data.omniglot(part, root=config.root) for part in (config.train_part, config.test_part))
    return dx.data.with_rotations(taught), tested


if __name__ == "__main__":
    recipe_cli(PAPER, SMOKE, main)
