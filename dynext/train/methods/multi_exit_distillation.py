"""Distillation-based training for multi-exit nets: later exits teach earlier ones, with labels and without."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from typing_extensions import Unpack

from dynext.data.given import LearnOptions, takes_data
from dynext.errors import FitError
from dynext.fitting import FitConfig, configured, fit
from dynext.losses.exits import annealed_temperature, multi_exit_loss, weighted_cross_entropy
from dynext.net.dynamic_net import DynamicNet
from dynext.train.batches import Augment, BatchSampler
from dynext.train.exit_loop import (
    EveryExit,
    check_has_exits,
    check_one_rate,
    handed_back,
    labelled,
    named_by_draws,
)
from dynext.types import Data
from dynext.usual_modes import in_usual_modes

USUAL = FitConfig(batch_size=64)


@in_usual_modes
@takes_data("source", unlabelled=("unlabelled",))
def multi_exit_distillation(
    net: DynamicNet,
    source: Data,
    config: FitConfig | None = None,
    *,
    unlabelled: Data | None = None,
    teachers: Literal["last", "later"] = "last",
    share: float = 0.5,
    augment: Augment | None = None,
    **options: Unpack[LearnOptions],
) -> DynamicNet:
    """A copy of ``net`` whose exits learn from labels and from later exits; trunk and exits together.

    Loss: ``10/e [(1 - share) sum_e CE_e + share D]`` with D of `dynext.losses.multi_exit_loss`; on samples without
    labels D alone, as many of them a step as of the others. The temperature starts at 1 and rises as
    `dynext.losses.annealed_temperature` says.

    Args:
        unlabelled: further samples; real ones, or a bank of synthesized ones.
        teachers: of each exit: the last exit, or all later ones.
        share: of distillation in the loss.

    Raises:
        FitError: no early exit, no such ``teachers``, or a share outside [0, 1].
        SourceError: no labels, or samples of another shape than the model expects.

    Source: Phuong & Lampert, ICCV 2019; factors as in its code, which has ``share`` .5.
    """
    config = configured(USUAL, config, options)
    if teachers not in ("last", "later") or not 0 <= share <= 1:
        raise FitError(f"teachers={teachers!r}, share={share}; give 'last' or 'later', and a share in [0, 1]")
    check_has_exits(net)
    check_one_rate(config)
    batches = BatchSampler.of(source, net, augment)
    more = None if unlabelled is None else BatchSampler.of(unlabelled, net, augment, labelled=False)
    student = copy.deepcopy(net).requires_grad_(True)
    trained = AnnealedExits(student)
    factor, batch_size = 10 / net.num_exits, config.batch_size

    def step(module: nn.Module, draw: Generator, done: float) -> Tensor:
        like = next(trained.parameters())
        batch = batches.draw(batch_size, draw)
        assert batch.y is not None  # noqa: S101  `BatchSampler.of` has checked
        logits_e = module(batch.x.to(like))
        trained.anneal(logits_e[-1])
        hard = weighted_cross_entropy(logits_e, batch.y.to(like.device), [1.0] * net.num_exits)
        soft = multi_exit_loss(logits_e, trained.tau, teachers)
        if more is not None:
            further_e = module(more.draw(batch_size, draw).x.to(like))
            soft = soft + multi_exit_loss(further_e, trained.tau, teachers)
        return factor * ((1 - share) * hard + share * soft)

    config = labelled(config, "multi-exit distillation", teachers=teachers, share=share, more=more is not None)
    fit(trained.train(), step, named_by_draws(config, batches.num_samples), modes="given")
    return handed_back(student, net, batches.content)


class AnnealedExits(EveryExit):
    """Every exit's logits; the temperature is a buffer, so that a resumed run goes on at the one it had reached."""

    def __init__(self, net: DynamicNet) -> None:
        super().__init__(net)
        self.temperature: Tensor
        self.register_buffer("temperature", torch.ones((), dtype=torch.float64))

    @property
    def tau(self) -> float:
        return float(self.temperature)

    @torch.no_grad()
    def anneal(self, teacher_bk: Tensor) -> None:
        """Raise the temperature where the teacher is too sure at the one it has."""
        self.temperature.fill_(annealed_temperature(self.tau, teacher_bk))
