"""SkipNet: gates before the blocks, trained first with labels alone, then by hybrid reinforcement learning.

Source: Wang et al., ECCV 2018, arXiv:1711.09485. Ours executes only what runs (`dynext.runtime.engine`); blocks that
change the shape of their input always run, where the paper skips them down to their shortcut.

Shapes: b samples, g gated stages.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from typing_extensions import Unpack

from dynext.data.given import LearnOptions, takes_data
from dynext.errors import FitError
from dynext.fitting import FitConfig, configured
from dynext.losses.gates import leave_one_out_mean, log_probability, reinforce, skipnet_returns
from dynext.net.dynamic_net import DynamicNet
from dynext.net.masked_pass import gated, gates_of, sampled, straight_through
from dynext.train.batches import Augment, TaughtBatch, TaughtBatches
from dynext.train.frozen_teacher import BesideMode
from dynext.train.gate_loop import GateHistory, GateStep, train_gates
from dynext.types import Data
from dynext.usual_modes import in_usual_modes

PRETRAINING = FitConfig(
    steps=64_000, lr=0.1, trunk_lr=0.1, batch_size=128, optimizer="sgd", weight_decay=1e-4, schedule="milestones"
)
"""The paper's: the rate falls tenfold at a half and at three quarters of the steps."""

REINFORCING = FitConfig(
    steps=10_000, lr=1e-4, trunk_lr=1e-4, batch_size=128, optimizer="sgd", weight_decay=1e-4, schedule="constant"
)


@in_usual_modes
@takes_data("source")
def skipnet_pretrain(
    net: DynamicNet,
    source: Data,
    config: FitConfig | None = None,
    *,
    teacher: nn.Module | None = None,
    augment: Augment | None = None,
    bn: BesideMode = "frozen",
    price: float = 0.0,
    **options: Unpack[LearnOptions],
) -> tuple[DynamicNet, GateHistory]:
    """Supervised pre-training, decisions hard on the way forward and soft on the way back: a trained copy, its history.

    Loss: cross-entropy of the gated net, and ``price`` times the mean share of gated stages that run (0 in the paper;
    ours, a way to a budget without reinforcement learning). Run with static gates this fine-tunes a fixed set of
    blocks; there is then nothing but the trunk to train.

    Args:
        config: without one, the paper's schedule (`PRETRAINING`); ``trunk_lr=None`` leaves the stages as they are.
        teacher: says what is right in place of labels, by its probabilities.
        bn: with a teacher, which statistics both nets normalize by (`dynext.train.frozen_teacher`).

    Raises:
        FitError: samples without labels and no teacher, nothing to train, or a negative price.
        PolicyError: the net has no gates.
        SourceError: no samples, labels out of range, or samples of another shape than the model expects.

    Source: section 3.3.
    """
    config = configured(PRETRAINING, config, options)
    if price < 0:
        raise FitError(f"price={price}; give 0 or more")

    def step(student: DynamicNet, batch: TaughtBatch, draw: Generator, done: float) -> GateStep:
        run_gb: list[Tensor] = []

        def decide(g: int, logit_b: Tensor) -> Tensor:
            run_gb.append(straight_through(g, logit_b))
            return run_gb[-1]

        result = gated(student, batch.x, decide)
        cross_entropy = F.cross_entropy(result.logits_bk, batch.target, reduction="none").mean()
        return GateStep(
            loss=cross_entropy + price * torch.stack(run_gb).mean(),
            cross_entropy=cross_entropy,
            run_bg=result.run_bg,
        )

    batches = TaughtBatches.of(source, net, teacher=teacher, augment=augment, bn=bn)
    return train_gates(net, batches, step, config, method="SkipNet, supervised", options={"price": price})


@dataclass(frozen=True, kw_only=True)
class SkipNetReward:
    """What skipping a stage earns, and how much of it the gates learn from."""

    alpha: float = 0.1
    """Reward of skipping everything, in nats of cross-entropy; the paper's are .1, .01, .001."""
    weight: float = 0.01
    """Of the policy gradient beside the cross-entropy, as in the paper's code."""
    gamma: float = 1.0
    """Discount: how much of what follows a decision counts for it, as in the paper's code."""
    baseline: bool = False
    """Compare a sample's return with the mean of the others' (`dynext.losses.leave_one_out_mean`). The expected
    gradient stays; ours."""
    by_macs: bool = False
    """Weigh a skipped stage by its MACs instead of all alike; ours."""

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.weight < 0 or not 0 <= self.gamma <= 1:
            raise FitError(
                f"alpha={self.alpha}, weight={self.weight}, gamma={self.gamma}; give 0 or more, and a gamma in [0, 1]"
            )


PUBLISHED_REWARD = SkipNetReward()


@in_usual_modes
@takes_data("source")
def skipnet_reinforce(
    net: DynamicNet,
    source: Data,
    config: FitConfig | None = None,
    *,
    teacher: nn.Module | None = None,
    augment: Augment | None = None,
    bn: BesideMode = "frozen",
    reward: SkipNetReward = PUBLISHED_REWARD,
    **options: Unpack[LearnOptions],
) -> tuple[DynamicNet, GateHistory]:
    """Hybrid reinforcement learning, from pre-trained gates: min E_x E_g [L(y(x, g), y) - alpha / N sum_i R_i].

    Decisions are drawn. Loss: cross-entropy of the drawn path, which trains the stages, and ``reward.weight`` times
    REINFORCE on the returns of `dynext.losses.skipnet_returns`, which trains the gates. A trained copy, and its
    history. From untrained gates and an untrained net this is the paper's ablation, the worst of both worlds.

    Args:
        config: without one, the paper's schedule (`REINFORCING`); ``trunk_lr=None`` leaves the stages as they are.
        teacher: says what is right in place of labels, by its probabilities.
        bn: with a teacher, which statistics both nets normalize by (`dynext.train.frozen_teacher`).

    Raises:
        FitError: samples without labels and no teacher, or figures out of range.
        PolicyError: the net has no gates.
        SourceError: no samples, labels out of range, or samples of another shape than the model expects.

    Source: section 3.4, eq. 2 to 4.
    """
    config = configured(REINFORCING, config, options)
    macs_g = torch.tensor([float(net.staged.stages[s].macs) for s in gates_of(net).at])
    cost_g = macs_g / macs_g.mean().clamp_min(1.0) if reward.by_macs else torch.ones_like(macs_g)

    def step(student: DynamicNet, batch: TaughtBatch, draw: Generator, done: float) -> GateStep:
        result = gated(student, batch.x, sampled(draw))
        loss_b = F.cross_entropy(result.logits_bk, batch.target, reduction="none")
        return_bg = skipnet_returns(result.run_bg, loss_b, reward.alpha, gamma=reward.gamma, cost_g=cost_g.to(loss_b))
        baseline_bg = leave_one_out_mean(return_bg) if reward.baseline else torch.zeros_like(return_bg)
        policy_b = reinforce(log_probability(result.logit_bg, result.run_bg), return_bg - baseline_bg)
        return GateStep(
            loss=loss_b.mean() + reward.weight * policy_b.mean(),
            cross_entropy=loss_b.mean(),
            run_bg=result.run_bg,
            reward_b=return_bg[:, 0],
            baseline_b=baseline_bg[:, 0],
        )

    batches = TaughtBatches.of(source, net, teacher=teacher, augment=augment, bn=bn)
    return train_gates(net, batches, step, config, method="SkipNet, hybrid", options=asdict(reward))
