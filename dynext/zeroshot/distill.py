"""Distil a frozen net into its own exits: heads learn the full net's answers on cached features."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import cast

import torch
from torch import Generator, Tensor, nn

from dynext.errors import FitError
from dynext.fitting import FitConfig, fit
from dynext.losses.exits import distillation, survivor_weights
from dynext.modules.exits import Exit
from dynext.modules.modes import take_flags
from dynext.net.dynamic_net import DynamicNet
from dynext.net.features import Features, cache_features, head_logits
from dynext.types import BatchNormMode, Source

LOW = (torch.float16, torch.bfloat16)

__all__ = ["Features", "cache_features", "distill", "head_logits"]


def distill(
    net: DynamicNet,
    teacher: nn.Module | None,
    source: Source | Features,
    *,
    steps: int = 2000,
    seed: int = 0,
    temperature: float = 4.0,
    lr: float = 2e-3,
    batch_size: int = 128,
    survivors: float = 0.0,
    bn: BatchNormMode | None = None,
    checkpoint: Path | str | None = None,
    accelerator: str = "cpu",
    progress: bool = True,
) -> DynamicNet:
    """A copy of ``net`` whose exits answer like the teacher on the samples of ``source``; the trunk stays as it is.

    Loss: tau^2 KL(softmax(teacher / tau) || softmax(exit / tau)), mean over samples, summed over exits; Adam with a
    cosine schedule. The last exit is bit-identical afterwards (Shallow-Deep's frozen trainer lets BatchNorm drift; ours
    never runs the trunk in training). Exits of a net in half precision are trained in single precision.

    Args:
        source: samples, or features that `cache_features` gave for this net.
        teacher: the static net; ``None`` takes the net's own last exit.
        survivors: from 0 (off) to 1, how much less a sample counts at an exit that it would hardly reach because an
            earlier one is sure of it: `dynext.losses.survivor_weights`.
        checkpoint: file in which an interrupted run is kept and resumed from.

    Source: Hinton et al. 2015, arXiv:1503.02531; Phuong & Lampert, ICCV 2019 (teacher: the last exit only).
    """
    if not len(net.exits):
        raise FitError("the net has no early exit to train; attach some (dx.attach)")
    if not 0 <= survivors <= 1:
        raise FitError(f"survivors={survivors}; give a share in [0, 1], 0 counts all samples alike")
    features = (
        source if isinstance(source, Features) else cache_features(net, teacher, source, bn=bn, progress=progress)
    )
    student = copy.deepcopy(net)
    student.requires_grad_(False)
    heads = _Heads(student)
    heads.requires_grad_(True).train()
    own = next(net.parameters()).dtype
    if own in LOW:  # Adam's squares vanish in half precision
        heads.float()

    def step(module: nn.Module, draw: Generator, done: float) -> Tensor:
        like = next(module.parameters())  # where the training runs, which need not be where the net is
        index = torch.randint(len(features), (min(batch_size, max(len(features), 2)),), generator=draw)
        target = features.logits_nk[index].to(like)
        logits_e = module([r[index].to(like) for r in features.reduced_e])
        weight_e = survivor_weights(logits_e, survivors) if survivors else [None] * len(logits_e)
        weighted = zip(logits_e, weight_e, strict=True)
        return torch.stack([distillation(logits, target, temperature, weight) for logits, weight in weighted]).sum()

    fit(
        heads,
        step,
        FitConfig(
            steps=steps,
            lr=lr,
            seed=seed,
            checkpoint=None if checkpoint is None else Path(checkpoint),
            accelerator=accelerator,
            progress=progress,
            label=f"distilling exits, survivors {survivors:g}" if survivors else "distilling exits",
            about=f"{len(features):,} rows, exits after {', '.join(net.exit_names[:-1])}, tau {temperature:g}",
        ),
    )
    if own in LOW:
        heads.to(own)
    student.to(next(net.parameters()).device)
    take_flags(student, net)
    return student


class _Heads(nn.Module):
    """The exits' trainable parts alone, so that `fit` sees no trunk."""

    def __init__(self, net: DynamicNet) -> None:
        super().__init__()
        self.exits = cast("list[Exit]", nn.ModuleList(net.exits))

    def forward(self, reduced_e: list[Tensor]) -> list[Tensor]:
        return [exit.head(reduced) for exit, reduced in zip(self.exits, reduced_e, strict=True)]
