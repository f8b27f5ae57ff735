"""The static alternative: the teacher distilled into a compact net (MobileNetV2, SqueezeNet), with labels or without.

What a dynamic net has to beat at equal MACs. Run `python recipes/prune_compact.py student=squeezenet rows=bank`; a
killed run goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

import dynext as dx
from dynext.recipe import recipe_cli


@dataclass(frozen=True, kw_only=True)
class Config:
    """Distillation at tau 4, half of the loss the labels' where there are any."""

    student: Literal["mobilenetv2", "squeezenet"] = "mobilenetv2"
    width: float = 0.25
    rows: Literal["labels", "unlabelled", "bank"] = "labels"
    model: str = "bundled:fashion_resnet20"
    steps: int = 6000
    lr: float = 2e-3
    batch: int = 64
    bank: int = 8192
    taught: int = 60_000
    test: int = 10_000
    seed: int = 0
    folder: Path = Path("runs/prune_compact")


PAPER = Config()
SMOKE = replace(PAPER, width=0.1, steps=2, batch=8, bank=16, taught=32, test=32, folder=Path("runs/smoke_compact"))


def main(config: Config) -> dict[str, object]:
    opened = dx.open_model(config.model)
    test = dx.data.fashion_mnist("test").subset(torch.arange(config.test))
    build = {"mobilenetv2": dx.models.MobileNetV2, "squeezenet": dx.models.SqueezeNet}[config.student]
    with dx.seeded(config.seed):
        student = build(opened.num_classes, opened.spec.shape[0], config.width).eval()
    if config.rows == "bank":
        source: dx.Source = dx.synthesize(
            opened.model, shape=opened.spec.shape, n=config.bank, seed=config.seed, spec=opened.spec, method="fitted"
        )
    else:
        train = dx.data.fashion_mnist("train").subset(torch.arange(config.taught))
        source = train if config.rows == "labels" else train.unlabelled()
    where = config.folder / f"{config.student}_{config.rows}"
    taught = dx.prune.distill_static(
        student,
        opened.model,
        source,
        augment=None if config.rows == "bank" else dx.data.augment,
        steps=config.steps,
        lr=config.lr,
        batch_size=config.batch,
        seed=config.seed,
        checkpoint=where.with_suffix(".ckpt"),
    )
    save_file(taught.state_dict(), where.with_suffix(".safetensors"))
    example = torch.zeros(1, *opened.spec.shape)
    return {
        "student": config.student,
        "rows": config.rows,
        "macs_share": dx.split(taught, example).macs / dx.split(opened.model, example).macs,
        "accuracy": accuracy(taught, test),
        "teacher_accuracy": accuracy(opened.model, test),
    }


@torch.no_grad()
def accuracy(net: torch.nn.Module, test: dx.data.Samples) -> float:
    return sum(int((net(batch.x).argmax(-1) == batch.y).sum()) for batch in test) / len(test)


if __name__ == "__main__":
    recipe_cli(PAPER, SMOKE, main)
