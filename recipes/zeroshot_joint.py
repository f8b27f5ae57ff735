"""Early layers made useful to early exits: the whole dynamic net distilled from its static self, without an image.

Heads are distilled first, on the frozen trunk; then trunk and heads together, with the last exit held near the static
net. Prints what every exit gains and what the last one loses, on test samples that nothing was chosen on.
Run `python recipes/zeroshot_joint.py`; a killed run goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

import dynext as dx
from dynext.recipe import recipe_cli


@dataclass(frozen=True, kw_only=True)
class Config:
    """The bundled Fashion-MNIST net on samples that fit it, half of them inverted."""

    model: str = "bundled:fashion_resnet20"
    method: str = "mixture"
    samples: int = 8192
    steps: int = 1000
    joint_steps: int = 1000
    trunk_lr: float = 1e-4
    max_drift: float = 0.02
    """Share of held-out synthesized samples that the last exit may answer unlike the static net."""
    test: int = 10_000
    seed: int = 0
    folder: Path = Path("runs/zeroshot_joint")


PAPER = Config()
SMOKE = replace(
    PAPER, method="leaves", samples=64, steps=3, joint_steps=3, test=64, max_drift=1.0, folder=Path("runs/smoke_joint")
)


def main(config: Config) -> dict[str, list[float]]:
    opened = dx.open_model(config.model)
    test = dx.data.fashion_mnist("test").subset(torch.arange(config.test))
    staged = dx.split(opened.model, torch.zeros(1, *opened.spec.shape))
    net = dx.attach(staged, dx.default_heads(staged.num_classes), seed=config.seed)
    bank = dx.synthesize(
        opened.model,
        shape=opened.spec.shape,
        n=config.samples,
        seed=config.seed,
        method=config.method,
        spec=opened.spec,
        folder=config.folder / "bank",
    )
    heads = config.folder / "heads.ckpt"
    net = dx.distill(net, opened.model, bank, steps=config.steps, seed=config.seed, checkpoint=heads)
    whole, report = dx.zeroshot.distill_jointly(
        net,
        opened.model,
        bank,
        steps=config.joint_steps,
        seed=config.seed,
        trunk_lr=config.trunk_lr,
        max_drift=config.max_drift,
        checkpoint=config.folder / "joint.ckpt",
    )
    print(report)
    return {"frozen": _accuracy(net, test), "joint": _accuracy(whole, test)}


def _accuracy(net: dx.DynamicNet, test: dx.data.Samples) -> list[float]:
    """Share right of every exit, the last included."""
    return dx.collect(net, test).right_ne.double().mean(0).tolist()


if __name__ == "__main__":
    recipe_cli(PAPER, SMOKE, main)
