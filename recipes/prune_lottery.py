"""Lottery tickets: train, take away the smallest weights, rewind what is left to an early step, and train again.

Weights are set to zero, not removed: this says how few are needed, and saves no time (for that, `dynext prune`). Beside
each ticket stands a net with as many weights taken away by chance, rewound to the same step.
Run `python recipes/prune_lottery.py`.

Source: Frankle & Carbin, ICLR 2019, arXiv:1803.03635; rewinding to an early step: Frankle et al., ICML 2020,
arXiv:1912.05671.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import dynext as dx
from dynext.recipe import recipe_cli


@dataclass(frozen=True, kw_only=True)
class Config:
    """A fifth of the weights a round, as in the paper; a ResNet-14 on Fashion-MNIST."""

    depth: int = 14
    width: int = 16
    rounds: int = 8
    share: float = 0.2
    """Of the weights that are left, taken away in each round."""
    rewind: int = 200
    """The step whose weights a ticket starts from."""
    steps: int = 3000
    lr: float = 0.1
    batch: int = 64
    rows: int = 60_000
    test: int = 10_000
    seed: int = 0


PAPER = Config()
SMOKE = replace(PAPER, depth=8, width=4, rounds=1, rewind=1, steps=2, batch=16, rows=64, test=64)


def main(config: Config) -> dict[str, object]:
    train = dx.data.fashion_mnist("train").subset(torch.arange(config.rows))
    test = dx.data.fashion_mnist("test").subset(torch.arange(config.test))
    with dx.seeded(config.seed):
        net = dx.models.ResNet(config.depth, width=config.width, channels=1)
    everything = masks(net, 0.0)
    early = trained(net, everything, train, config, config.rewind)
    grown, lines = trained(early, everything, train, config, config.steps), []
    lines.append({"left": 1.0, "ticket": accuracy(grown, test)})
    for number in range(1, config.rounds + 1):
        gone = 1 - (1 - config.share) ** number
        ticket = masks(grown, gone)  # what is zero already is smallest
        grown = trained(early, ticket, train, config, config.steps)
        with dx.seeded(config.seed):
            chance = masks(early, gone, prune.RandomUnstructured)
        by_chance = trained(early, chance, train, config, config.steps)
        lines.append({"left": 1 - gone, "ticket": accuracy(grown, test), "by_chance": accuracy(by_chance, test)})
        print(lines[-1])
    return {"rounds": lines}


def trained(net: nn.Module, kept: list[torch.Tensor], train: dx.data.Samples, config: Config, steps: int) -> nn.Module:
    """A copy of ``net`` trained with only the ``kept`` weights, the others at zero."""

    def step(module: nn.Module, draw: torch.Generator, done: float) -> torch.Tensor:
        batch = train.take(torch.randint(len(train), (config.batch,), generator=draw))
        return F.cross_entropy(module(dx.data.augment(batch.x, draw)), batch.y)

    grown = copy.deepcopy(net).train()
    for (module, name), mask in zip(layers(grown), kept, strict=True):
        prune.custom_from_mask(module, name, mask)
    fitting = dx.FitConfig(
        steps=steps, lr=config.lr, optimizer="sgd", weight_decay=5e-4, schedule="onecycle", seed=config.seed
    )
    dx.fit(grown, step, fitting)
    for module, name in layers(grown):
        prune.remove(module, name)
    return grown.eval()


def layers(net: nn.Module) -> list[tuple[nn.Module, str]]:
    return [(module, "weight") for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def masks(net: nn.Module, share: float, method: type = prune.L1Unstructured) -> list[torch.Tensor]:
    """Which weights stay when this share of all goes, the smallest first."""
    masked = copy.deepcopy(net)
    prune.global_unstructured(layers(masked), method, amount=share)
    return [module.weight_mask for module, _ in layers(masked)]


@torch.no_grad()
def accuracy(net: nn.Module, test: dx.data.Samples) -> float:
    return sum(int((net(batch.x).argmax(-1) == batch.y).sum()) for batch in test) / len(test)


if __name__ == "__main__":
    recipe_cli(PAPER, SMOKE, main)
