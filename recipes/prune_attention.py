"""Attention of later layers, distilled into the exits of a frozen net, then detached: exits cost no more than before.

With labels, with unlabelled images, or with no image at all (`rows=labels|unlabelled|bank`); beside it plain exits that
learned from the same samples for as many steps. Run `python recipes/prune_attention.py`; a killed run goes on.
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
    """The bundled Fashion-MNIST net; lambda 1 and tau 4 are ours, as the method is."""

    rows: Literal["labels", "unlabelled", "bank"] = "labels"
    model: str = "bundled:fashion_resnet20"
    after: tuple[float, ...] = (0.15, 0.3, 0.45, 0.6)
    later: Literal["deepest", "next"] = "deepest"
    anneal: bool = True
    """Fade the exits' own masks out, so that nothing of them is left; otherwise they stay, and their MACs count."""
    attention: float = 1.0
    temperature: float = 4.0
    steps: int = 4000
    lr: float = 2e-3
    batch: int = 128
    taught: int = 20_000
    """Samples to learn from; their features are kept in memory."""
    test: int = 10_000
    seed: int = 0
    folder: Path = Path("runs/prune_attention")


PAPER = Config()
SMOKE = replace(PAPER, after=(0.3, 0.6), steps=3, taught=32, test=64, batch=16, folder=Path("runs/smoke_attention"))


def main(config: Config) -> dict[str, object]:
    opened = dx.open_model(config.model)
    test = dx.data.fashion_mnist("test").subset(torch.arange(config.test))
    source = samples(config, opened)
    staged = dx.split(opened.model, torch.zeros(1, *opened.spec.shape), after=config.after)
    net = dx.attach(staged, dx.default_heads(opened.num_classes), seed=config.seed)
    plain = dx.prune.transfer_attention(net, source, fitting(config, "plain"), weight=0.0)
    auxiliary = dx.prune.distill_attention(
        dx.prune.lend_attention(net, later=config.later, seed=config.seed),
        source,
        fitting(config, "lent"),
        anneal=config.anneal,
        attention=config.attention,
        temperature=config.temperature,
    )
    detached = dx.prune.detach(auxiliary)
    where = config.folder / "net"
    dx.save(detached, where, policy=dx.Policy.never(detached.num_exits), spec=opened.spec, model_recipe=opened.recipe)
    return {
        "rows": config.rows,
        "exits": detached.exit_names,
        "macs_of_heads": {"plain": plain.head_macs_e, "detached": detached.head_macs_e},
        "plain": accuracy(plain.all_exits, test),
        "detached": accuracy(detached.all_exits, test),
        "attached": accuracy(auxiliary.attached, test),
        "net": str(where),
    }


def samples(config: Config, opened: dx.Opened) -> dx.Source:
    if config.rows == "bank":
        return dx.synthesize(
            opened.model, shape=opened.spec.shape, n=config.taught, seed=config.seed, spec=opened.spec, method="fitted"
        )
    train = dx.data.fashion_mnist("train")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed))
    taught = train.subset(order[: config.taught])
    return taught if config.rows == "labels" else taught.unlabelled()


def fitting(config: Config, name: str) -> dx.FitConfig:
    return dx.FitConfig(
        steps=config.steps,
        lr=config.lr,
        batch_size=config.batch,
        seed=config.seed,
        checkpoint=config.folder / config.rows / f"{name}.ckpt",
    )


@torch.no_grad()
def accuracy(all_exits: object, test: dx.data.Samples) -> list[float]:
    right = [(all_exits(batch.x).argmax(-1) == batch.y[:, None]).double().sum(0) for batch in test]
    return (torch.stack(right).sum(0) / len(test)).tolist()


if __name__ == "__main__":
    recipe_cli(PAPER, SMOKE, main)
