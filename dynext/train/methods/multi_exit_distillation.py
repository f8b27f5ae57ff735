"""Distillation-based training for multi-exit nets: later exits teach earlier ones, with labels and without."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from dynext.errors import FitError
from dynext.fitting import FitConfig, fit
from dynext.losses import exits as losses
from dynext.net.dynamic_net import DynamicNet
from dynext.train.exit_loop import Augment, BatchSampler, EveryExit, drawing, handed_back, labelled
from dynext.types import Source


def multi_exit_distillation(
    net: DynamicNet,
    source: Source,
    config: FitConfig,
    *,
    unlabelled: Source | None = None,
    teachers: Literal["last", "later"] = "last",
    share: float = 0.5,
    batch_size: int = 64,
    augment: Augment | None = None,
) -> DynamicNet:
    """A copy of ``net`` whose exits learn from labels and from later exits; trunk and exits together.

    Loss: ``10/e [(1 - share) sum_e CE_e + share D]`` with D of `dynext.losses.multi_exit_loss`; on samples without
    labels D alone, as many of them a step as of the others. The temperature starts at 1 and rises by a twentieth
    whenever the last exit's mean largest probability exceeds a half.

    Args:
        unlabelled: further samples; real ones, or a bank of synthesized ones.
        teachers: the last exit, or all later ones.

    Raises:
        FitError: no early exit, no such ``teachers``, or a share outside [0, 1].
        SourceError: no labels, or samples of another shape than the model expects.

    Source: Phuong & Lampert, ICCV 2019 (deck's formula); factors as in its code, which has ``share`` .5.
    """
    if teachers not in ("last", "later") or not 0 <= share <= 1:
        raise FitError(f"teachers={teachers!r}, share={share}; give 'last' or 'later', and a share in [0, 1]")
    rows = BatchSampler.of(source, net, augment)
    more = None if unlabelled is None else BatchSampler.of(unlabelled, net, augment, labelled=False)
    student = copy.deepcopy(net).requires_grad_(True)
    trained = Heated(student)
    factor = 10 / net.num_exits

    def step(module: nn.Module, draw: Generator, done: float) -> Tensor:
        like = next(trained.parameters())
        batch = rows.draw(batch_size, draw)
        assert batch.y is not None  # noqa: S101  `BatchSampler.of` has looked
        logits_e = module(batch.x.to(like))
        trained.heat(logits_e[-1])
        hard = losses.weighted_cross_entropy(logits_e, batch.y.to(like.device), [1.0] * net.num_exits)
        soft = losses.multi_exit_loss(logits_e, trained.tau, teachers)
        if more is not None:
            further_e = module(more.draw(batch_size, draw).x.to(like))
            soft = soft + losses.multi_exit_loss(further_e, trained.tau, teachers)
        return factor * ((1 - share) * hard + share * soft)

    config = labelled(config, "multi-exit distillation", teachers=teachers, share=share, more=more is not None)
    fit(trained.train(), step, drawing(config, batch_size, rows.count))
    return handed_back(student, net)


class Heated(EveryExit):
    """With the temperature as a buffer, so that a resumed run goes on at the one it had reached."""

    def __init__(self, net: DynamicNet) -> None:
        super().__init__(net)
        self.temperature: Tensor
        self.register_buffer("temperature", torch.ones((), dtype=torch.float64))

    @property
    def tau(self) -> float:
        return float(self.temperature)

    @torch.no_grad()
    def heat(self, teacher_bk: Tensor) -> None:
        self.temperature.fill_(losses.heated(self.tau, teacher_bk))
