"""Distil a frozen net into its own exits: heads learn the full net's answers on cached features."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import cast

import torch
from torch import Generator, Tensor, nn
from typing_extensions import Unpack

from dynext.data.given import LearnOptions, takes_data
from dynext.errors import FitError
from dynext.fitting import FitConfig, configured, fit
from dynext.losses.exits import distillation, survivor_weights
from dynext.modules.exits import Exit
from dynext.modules.modes import take_flags
from dynext.net.dynamic_net import DynamicNet
from dynext.net.features import Features, cache_features, head_logits
from dynext.types import BatchNormMode, Data
from dynext.usual_modes import in_usual_modes

LOW = (torch.float16, torch.bfloat16)

__all__ = ["Features", "cache_features", "distill", "head_logits"]


USUAL = FitConfig(steps=2000, lr=2e-3, batch_size=128)


@in_usual_modes
@takes_data(unlabelled=("source",), besides=(Features,))
def distill(
    net: DynamicNet,
    teacher: nn.Module | None,
    source: Data | Features,
    config: FitConfig | None = None,
    *,
    temperature: float = 4.0,
    survivors: float = 0.0,
    bn: BatchNormMode | None = None,
    **options: Unpack[LearnOptions],
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
        config, options: 2,000 steps of 128 samples at a rate of .002 without them. With ``checkpoint`` an interrupted
            run is kept and resumed.

    Source: Hinton et al. 2015, arXiv:1503.02531; Phuong & Lampert, ICCV 2019 (teacher: the last exit only).
    """
    config = configured(USUAL, config, options)
    if not len(net.exits):
        raise FitError("the net has no early exit to train; attach some (dx.attach)")
    if not 0 <= survivors <= 1:
        raise FitError(f"survivors={survivors}; give a share in [0, 1], 0 counts all samples alike")
    if isinstance(source, Features):
        features = source
    else:
        features = cache_features(net, teacher, source, bn=bn, progress=config.progress)
    student = copy.deepcopy(net)
    student.requires_grad_(False)
    heads = _Heads(student)
    heads.requires_grad_(True).train()
    own = next(net.parameters()).dtype
    if own in LOW:  # Adam's squares vanish in half precision
        heads.float()

    def step(module: nn.Module, draw: Generator, done: float) -> Tensor:
        like = next(module.parameters())  # where the training runs, which need not be where the net is
        index = torch.randint(len(features), (min(config.batch_size, max(len(features), 2)),), generator=draw)
        target = features.logits_nk[index].to(like)
        logits_e = module([r[index].to(like) for r in features.reduced_e])
        weight_e = survivor_weights(logits_e, survivors) if survivors else [None] * len(logits_e)
        weighted = zip(logits_e, weight_e, strict=True)
        return torch.stack([distillation(logits, target, temperature, weight) for logits, weight in weighted]).sum()

    label = f"distilling exits, survivors {survivors:g}" if survivors else "distilling exits"
    about = f"{len(features):,} rows, exits after {', '.join(net.exit_names[:-1])}, tau {temperature:g}"
    fit(heads, step, replace(config, label=label, about=about), modes="given")
    if own in LOW:
        heads.to(own)
    student.to(next(net.parameters()).device)
    take_flags(student, net)
    student.seen = net.seen | features.content
    return student


class _Heads(nn.Module):
    """The exits' trainable parts alone, so that `fit` sees no trunk."""

    def __init__(self, net: DynamicNet) -> None:
        super().__init__()
        self.exits = cast("list[Exit]", nn.ModuleList(net.exits))

    def forward(self, reduced_e: list[Tensor]) -> list[Tensor]:
        return [exit.head(reduced) for exit, reduced in zip(self.exits, reduced_e, strict=True)]
