"""The bundled net: a CIFAR-style ResNet on Fashion-MNIST, static, from scratch.

Run `python recipes/train_static.py` to make the bundled files anew (`out=FILE` elsewhere); a killed run goes on.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import dynext as dx


@dataclass(frozen=True, kw_only=True)
class Config:
    """ResNet-20 of width 32 (32-64-128 channels): wide enough to have compute to save."""

    depth: int = 20
    width: int = 32
    epochs: float = 7
    small: float = 0.55
    """First share of the run on rows of half the side: a quarter of the cost, while the rate is high anyway."""
    batch: int = 64
    lr: float = 0.1
    weight_decay: float = 5e-4
    seed: int = 0
    rows: int | None = None
    out: Path = Path("data/fashion_resnet20")


PAPER = Config()
SMOKE = replace(PAPER, depth=8, width=4, epochs=0.25, rows=512, batch=32, out=Path("runs/smoke"))


def main(config: Config) -> dict[str, float]:
    train, test = dx.data.fashion_mnist("train"), dx.data.fashion_mnist("test")
    if config.rows is not None:
        train, test = (rows.subset(torch.arange(config.rows)) for rows in (train, test))
    with dx.seeded(config.seed):
        net = dx.models.ResNet(config.depth, width=config.width, channels=1)
    net = net.to(memory_format=torch.channels_last)

    def step(module: torch.nn.Module, draw: torch.Generator, done: float) -> torch.Tensor:
        batch = train.take(torch.randint(len(train), (config.batch,), generator=draw))
        x = dx.data.augment(batch.x, draw)
        x = F.avg_pool2d(x, 2) if done < config.small else x
        return F.cross_entropy(module(x.contiguous(memory_format=torch.channels_last)), batch.y)

    net.train()
    fitting = dx.FitConfig(
        steps=int(config.epochs * len(train) / config.batch),
        lr=config.lr,
        optimizer="sgd",
        weight_decay=config.weight_decay,
        schedule="onecycle",
        seed=config.seed,
        checkpoint=config.out.with_suffix(".partial"),
        label="static net",
    )
    dx.fit(net, step, fitting)
    accuracy = _accuracy(net.eval(), test)
    state = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, config.out.with_suffix(".safetensors"))
    parameters = sum(map(torch.numel, net.parameters()))
    figures = {"test_accuracy": accuracy, "parameters": parameters}
    notes = {"config": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}, **figures}
    config.out.with_suffix(".json").write_text(json.dumps(notes, indent=2) + "\n")
    fitting.checkpoint.unlink(missing_ok=True)
    return figures


@torch.inference_mode()
def _accuracy(net: torch.nn.Module, rows: dx.data.Rows) -> float:
    right = sum(int((net(batch.x).argmax(1) == batch.y).sum()) for batch in rows)
    return right / len(rows)


if __name__ == "__main__":
    dx.recipe_cli(PAPER, SMOKE, main)
