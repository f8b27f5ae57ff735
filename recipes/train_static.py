"""The bundled net: a CIFAR-style ResNet on Fashion-MNIST, static, from scratch.

Run `python recipes/train_static.py` to make the bundled files anew (`out=FILE` elsewhere); a killed run goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import dynext as dx
from dynext.recipe import recipe_cli


@dataclass(frozen=True, kw_only=True)
class Config:
    """ResNet-20 of width 32 (32-64-128 channels): wide enough to have compute to save."""

    depth: int = 20
    width: int = 32
    epochs: tuple[float, ...] = (7, 4)
    """One cycle of the learning rate each; a later cycle starts from the weights of the one before (warm restart)."""
    small: tuple[float, ...] = (0.55, 0.25)
    """First share of each cycle on samples of half the side: a quarter of the cost, while the rate is high anyway."""
    lr: tuple[float, ...] = (0.1, 0.05)
    """Peak rate of each cycle."""
    batch: int = 64
    weight_decay: float = 5e-4
    seed: int = 0
    rows: int | None = None
    out: Path = Path("data/fashion_resnet20")


PAPER = Config()
SMOKE = replace(PAPER, depth=8, width=4, epochs=(0.25, 0.25), rows=512, batch=32, out=Path("runs/smoke"))


def main(config: Config) -> dict[str, float]:
    train, test = dx.data.fashion_mnist("train"), dx.data.fashion_mnist("test")
    if config.rows is not None:
        train, test = (part.subset(torch.arange(config.rows)) for part in (train, test))
    with dx.seeded(config.seed):
        net = dx.models.ResNet(config.depth, width=config.width, channels=1)
    net = net.to(memory_format=torch.channels_last)
    config.out.parent.mkdir(parents=True, exist_ok=True)

    cycles = list(zip(config.epochs, config.small, config.lr, strict=True))
    for n, (epochs, small, lr) in enumerate(cycles):
        done_before = config.out.with_suffix(f".cycle{n}")
        if done_before.exists():
            net.load_state_dict(load_file(done_before))
            continue
        fitting = dx.FitConfig(
            steps=int(epochs * len(train) / config.batch),
            lr=lr,
            optimizer="sgd",
            weight_decay=config.weight_decay,
            schedule="onecycle",
            seed=config.seed + n,
            checkpoint=config.out.with_suffix(".partial"),
            label=f"static net, cycle {n + 1} of {len(cycles)}",
        )
        dx.fit(net.train(), _step(train, config.batch, small), fitting)
        save_file(_state(net), done_before)
        fitting.checkpoint.unlink()
    accuracy = _accuracy(net.eval(), test)
    save_file(_state(net), config.out.with_suffix(".safetensors"))
    parameters = sum(map(torch.numel, net.parameters()))
    figures = {"test_accuracy": accuracy, "parameters": parameters}
    notes = {"config": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}, **figures}
    config.out.with_suffix(".json").write_text(json.dumps(notes, indent=2) + "\n")
    for n in range(len(cycles)):
        config.out.with_suffix(f".cycle{n}").unlink()
    return figures


def _step(train: dx.data.Samples, batch_size: int, small: float) -> Callable[..., torch.Tensor]:
    def step(module: torch.nn.Module, draw: torch.Generator, done: float) -> torch.Tensor:
        batch = train.take(torch.randint(len(train), (batch_size,), generator=draw))
        x = dx.data.augment(batch.x, draw)
        x = F.avg_pool2d(x, 2) if done < small else x
        return F.cross_entropy(module(x.contiguous(memory_format=torch.channels_last)), batch.y)

    return step


def _state(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in net.state_dict().items()}


@torch.inference_mode()
def _accuracy(net: torch.nn.Module, test: dx.data.Samples) -> float:
    right = sum(int((net(batch.x).argmax(1) == batch.y).sum()) for batch in test)
    return right / len(test)


if __name__ == "__main__":
    recipe_cli(PAPER, SMOKE, main)
