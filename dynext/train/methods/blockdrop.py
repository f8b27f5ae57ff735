"""BlockDrop: a policy network sees the input once and decides which blocks run.

It learns by a curriculum on a frozen net, then both nets learn together.

Source: Wu et al., CVPR 2018, arXiv:1711.08393. Ours trains any kind of gates this way, and decides about the stages
that a sample may skip (blocks that change the shape of their input always run).

Shapes: b samples, g gated stages.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from typing_extensions import Unpack

from dynext.data.given import LearnOptions, takes_data
from dynext.errors import FitError
from dynext.fitting import FitConfig, configured
from dynext.losses.gates import (
    blockdrop_reward,
    correctness,
    exploration_bonus,
    log_probability,
    reinforce,
    unlocked_gates,
)
from dynext.net.dynamic_net import DynamicNet
from dynext.net.masked_pass import Decide, GatedPass, gated, greedy, sampled
from dynext.train.batches import Augment, TaughtBatch, TaughtBatches
from dynext.train.frozen_teacher import BesideMode
from dynext.train.gate_loop import GateHistory, GateStep, train_gates
from dynext.types import Data
from dynext.usual_modes import in_usual_modes

FROZEN_NET = FitConfig(steps=20_000, lr=1e-3, batch_size=2048, schedule="constant")
BOTH_NETS = FitConfig(steps=20_000, lr=1e-4, trunk_lr=1e-4, batch_size=256, schedule="constant")

MIX = 0.8
"""Share of the gates' own probability in the one that decisions are drawn by, so that none is ever certain."""


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """How the gates are let explore: the last one first, one more from the end at a time."""

    ramp: float = 0.5
    """Share of the steps until all gates may learn."""
    entropy: float = 0.1
    """Weight of `dynext.losses.exploration_bonus` in the loss."""

    def __post_init__(self) -> None:
        if self.entropy < 0 or not 0 < self.ramp <= 1:
            raise FitError(
                f"entropy={self.entropy}, ramp={self.ramp}; give 0 or more, and a ramp in (0, 1] of the steps"
            )


USUAL_CURRICULUM = Curriculum()


@in_usual_modes
@takes_data("source")
def blockdrop_curriculum(
    net: DynamicNet,
    source: Data,
    config: FitConfig | None = None,
    *,
    teacher: nn.Module | None = None,
    augment: Augment | None = None,
    bn: BesideMode = "frozen",
    penalty: float = 1.0,
    curriculum: Curriculum = USUAL_CURRICULUM,
    **options: Unpack[LearnOptions],
) -> tuple[DynamicNet, GateHistory]:
    """Learn what to skip in a net that stays as it is, one gate after the other: a trained copy, and its history.

    Decisions are drawn from the mixed probabilities; gates that are still locked run their stages and are left out of
    the reward's gradient. Loss: REINFORCE with the reward of the greedy decisions as baseline (self-critical), less
    ``curriculum.entropy`` times `dynext.losses.exploration_bonus`.

    Args:
        config: without one, the paper's schedule (`FROZEN_NET`); a positive ``trunk_lr`` trains the stages as well.
        teacher: says what is right in place of labels; the reward is then the mean over what it believes.
        bn: with a teacher, which statistics both nets normalize by (`dynext.train.frozen_teacher`).
        penalty: of a wrong answer; a right one earns up to 1.

    Raises:
        FitError: samples without labels and no teacher, or figures out of range.
        PolicyError: the net has no gates.
        SourceError: no samples, labels out of range, or samples of another shape than the model expects.

    Source: sections 3.2 and 3.3.
    """
    config = configured(FROZEN_NET, config, options)
    _check(penalty)

    def step(student: DynamicNet, batch: TaughtBatch, draw: Generator, done: float) -> GateStep:
        open_g = unlocked_gates(student.num_gates, done, curriculum.ramp).to(batch.x.device)
        explored = _explored(student, batch, draw, open_g, penalty)
        bonus_b = (exploration_bonus(explored.drawn.logit_bg, MIX) * open_g).sum(1)
        return GateStep(
            loss=(explored.policy_b - curriculum.entropy * bonus_b).mean(),
            cross_entropy=F.cross_entropy(explored.drawn.logits_bk, batch.target),
            run_bg=explored.drawn.run_bg,
            reward_b=explored.reward_b,
            baseline_b=explored.baseline_b,
        )

    batches = TaughtBatches.of(source, net, teacher=teacher, augment=augment, bn=bn)
    figures = {"penalty": penalty, **asdict(curriculum)}
    return train_gates(net, batches, step, config, method="BlockDrop, curriculum", options=figures)


@in_usual_modes
@takes_data("source")
def blockdrop_finetune(
    net: DynamicNet,
    source: Data,
    config: FitConfig | None = None,
    *,
    teacher: nn.Module | None = None,
    augment: Augment | None = None,
    bn: BesideMode = "frozen",
    penalty: float = 10.0,
    **options: Unpack[LearnOptions],
) -> tuple[DynamicNet, GateHistory]:
    """Both nets together, after the curriculum: a trained copy of ``net``, and its history.

    Loss: the policy gradient, summed over the samples as in the paper's code, and the cross-entropy of the drawn path.

    Args:
        config: without one, the paper's schedule (`BOTH_NETS`); ``trunk_lr=None`` leaves the stages as they are.
        teacher: says what is right in place of labels; the reward is then the mean over what it believes.
        bn: with a teacher, which statistics both nets normalize by (`dynext.train.frozen_teacher`).
        penalty: of a wrong answer; a right one earns up to 1. The paper has 10 on CIFAR, 5 on ImageNet.

    Raises:
        FitError: samples without labels and no teacher, or a negative penalty.
        PolicyError: the net has no gates.
        SourceError: no samples, labels out of range, or samples of another shape than the model expects.

    Source: section 3.3.
    """
    config = configured(BOTH_NETS, config, options)
    _check(penalty)

    def step(student: DynamicNet, batch: TaughtBatch, draw: Generator, done: float) -> GateStep:
        open_g = torch.ones(student.num_gates, dtype=torch.bool, device=batch.x.device)
        explored = _explored(student, batch, draw, open_g, penalty)
        cross_entropy = F.cross_entropy(explored.drawn.logits_bk, batch.target)
        return GateStep(
            loss=explored.policy_b.sum() + cross_entropy,
            cross_entropy=cross_entropy,
            run_bg=explored.drawn.run_bg,
            reward_b=explored.reward_b,
            baseline_b=explored.baseline_b,
        )

    batches = TaughtBatches.of(source, net, teacher=teacher, augment=augment, bn=bn)
    return train_gates(net, batches, step, config, method="BlockDrop, joint", options={"penalty": penalty})


class Explored(NamedTuple):
    """A pass by drawn decisions, and per sample its policy gradient's loss, its reward and the greedy decisions'."""

    drawn: GatedPass
    policy_b: Tensor
    reward_b: Tensor
    baseline_b: Tensor


def _explored(student: DynamicNet, batch: TaughtBatch, draw: Generator, open_g: Tensor, penalty: float) -> Explored:
    drawn = gated(student, batch.x, _forced(sampled(draw, MIX), open_g))
    with torch.no_grad():
        usual = gated(student, batch.x, _forced(greedy([0.5] * student.num_gates), open_g))
    reward_b, baseline_b = (
        blockdrop_reward(path.run_bg, correctness(path.logits_bk, batch.target), penalty) for path in (drawn, usual)
    )
    log_bg = log_probability(drawn.logit_bg, drawn.run_bg, MIX) * open_g
    return Explored(drawn, reinforce(log_bg, reward_b - baseline_b), reward_b, baseline_b)


def _forced(decide: Decide, open_g: Tensor) -> Decide:
    """Every sample runs the stages of locked gates."""
    return lambda g, logit_b: decide(g, logit_b) if open_g[g] else torch.ones_like(logit_b)


def _check(penalty: float) -> None:
    if penalty < 0:
        raise FitError(f"penalty={penalty}; give 0 or more")
