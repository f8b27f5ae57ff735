"""BlockDrop: one look at the input decides which blocks run; a curriculum on a frozen net, then both nets together.

Source: Wu et al., CVPR 2018, arXiv:1711.08393. Ours trains any kind of gates this way, and decides about the stages
that a sample may skip (blocks that change the shape of their input always run).

Shapes: b samples, g gated stages.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from dynext.errors import FitError
from dynext.losses.gates import (
    blockdrop_reward,
    exploration_bonus,
    log_probability,
    reinforce,
    right_share,
    unlocked,
)
from dynext.net.dynamic_net import DynamicNet
from dynext.net.masked_pass import Decide, GatedPass, gated, greedy, sampled
from dynext.train.batches import TaughtBatch
from dynext.train.gate_loop import GateFit, GateTraining, Stepped, train_gates
from dynext.types import Source

CURRICULUM = GateFit(steps=20_000, lr=1e-3, batch_size=2048, schedule="constant", augmented=True)
JOINT = GateFit(steps=20_000, lr=1e-4, trunk_lr=1e-4, batch_size=256, schedule="constant", augmented=True)
MIX = 0.8


def blockdrop_curriculum(
    net: DynamicNet,
    source: Source,
    fitting: GateFit = CURRICULUM,
    *,
    teacher: nn.Module | None = None,
    penalty: float = 1.0,
    ramp: float = 0.5,
    entropy: float = 0.1,
) -> tuple[DynamicNet, GateTraining]:
    """Learn what to skip in a net that stays as it is: the last gate first, one more at a time. A copy, and how it
    went.

    Decisions are drawn from the mixed probabilities; gates that are still locked run their stages and are left out of
    reward's gradient. Loss: REINFORCE with the reward of the greedy decisions as baseline (self-critical), less
    ``entropy`` times `dynext.losses.gates.exploration_bonus`.

    Args:
        teacher: says what is right in place of labels; the reward is then the mean over what it believes.
        penalty: of a wrong answer.
        ramp: share of the steps until all gates may learn.

    Raises:
        FitError, SourceError: as `dynext.train.gate_loop.train_gates`; figures out of range.

    Source: sections 3.2 and 3.3.
    """
    _check(penalty, entropy, ramp)

    def step(student: DynamicNet, lesson: TaughtBatch, draw: Generator, done: float) -> Stepped:
        open_g = unlocked(student.num_gates, done, ramp).to(lesson.x.device)
        drawn, policy_b, reward_b, usual_b = _policy_gradient(student, lesson, draw, open_g, penalty)
        bonus_b = (exploration_bonus(drawn.logit_bg, MIX) * open_g).sum(1)
        return Stepped(
            loss=(policy_b - entropy * bonus_b).mean(),
            cross_entropy=F.cross_entropy(drawn.logits_bk, lesson.target),
            reward_b=reward_b,
            baseline_b=usual_b,
            run_bg=drawn.run_bg,
        )

    options = {"penalty": penalty, "ramp": ramp, "entropy": entropy}
    return train_gates(net, source, step, fitting, method="BlockDrop, curriculum", teacher=teacher, options=options)


def blockdrop_finetune(
    net: DynamicNet,
    source: Source,
    fitting: GateFit = JOINT,
    *,
    teacher: nn.Module | None = None,
    penalty: float = 10.0,
) -> tuple[DynamicNet, GateTraining]:
    """Both nets together, after the curriculum. A copy of ``net``, and how it went.

    Loss: the policy gradient, summed over the samples as in the paper's code, and the cross-entropy of the drawn path.

    Args:
        penalty: of a wrong answer: 10 on CIFAR, 5 on ImageNet.

    Raises:
        FitError, SourceError: as `dynext.train.gate_loop.train_gates`; a negative penalty.

    Source: section 3.3.
    """
    _check(penalty, 0.0, 1.0)

    def step(student: DynamicNet, lesson: TaughtBatch, draw: Generator, done: float) -> Stepped:
        open_g = torch.ones(student.num_gates, dtype=torch.bool, device=lesson.x.device)
        drawn, policy_b, reward_b, usual_b = _policy_gradient(student, lesson, draw, open_g, penalty)
        cross_entropy = F.cross_entropy(drawn.logits_bk, lesson.target)
        return Stepped(
            loss=policy_b.sum() + cross_entropy,
            cross_entropy=cross_entropy,
            reward_b=reward_b,
            baseline_b=usual_b,
            run_bg=drawn.run_bg,
        )

    return train_gates(
        net, source, step, fitting, method="BlockDrop, joint", teacher=teacher, options={"penalty": penalty}
    )


def _policy_gradient(
    student: DynamicNet, lesson: TaughtBatch, draw: Generator, open_g: Tensor, penalty: float
) -> tuple[GatedPass, Tensor, Tensor, Tensor]:
    """The drawn pass, the loss of its policy gradient, its reward and the greedy one's ``[b]``."""
    drawn = gated(student, lesson.x, _forced(sampled(draw, MIX), open_g))
    with torch.no_grad():
        usual = gated(student, lesson.x, _forced(greedy([0.5] * student.num_gates), open_g))
    reward_b, usual_b = (
        blockdrop_reward(one.run_bg, right_share(one.logits_bk, lesson.target), penalty) for one in (drawn, usual)
    )
    log_bg = log_probability(drawn.logit_bg, drawn.run_bg, MIX) * open_g
    return drawn, reinforce(log_bg, reward_b - usual_b), reward_b, usual_b


def _forced(decide: Decide, open_g: Tensor) -> Decide:
    """Everybody runs the stages of locked gates."""
    return lambda g, logit_b: decide(g, logit_b) if open_g[g] else torch.ones_like(logit_b)


def _check(penalty: float, entropy: float, ramp: float) -> None:
    if penalty < 0 or entropy < 0 or not 0 < ramp <= 1:
        raise FitError(
            f"penalty={penalty}, entropy={entropy}, ramp={ramp}; give 0 or more, and a ramp in (0, 1] of the steps"
        )
