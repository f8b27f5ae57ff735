"""SkipNet: gates before the blocks, trained first with labels alone, then by hybrid reinforcement learning.

Source: Wang et al., ECCV 2018, arXiv:1711.09485. Ours executes only what runs (`dynext.runtime.engine`); blocks that
change the shape of their input always run, where the paper skips them down to their shortcut.

Shapes: b samples, g gated stages.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from dynext.errors import FitError
from dynext.losses.gates import log_probability, reinforce, skipnet_returns, without_oneself
from dynext.net.dynamic_net import DynamicNet
from dynext.net.masked_pass import gated, gates_of, sampled, straight_through
from dynext.train.batches import TaughtBatch
from dynext.train.gate_loop import GateFit, GateTraining, Stepped, train_gates
from dynext.types import Source

PRETRAINING = GateFit(
    steps=64_000, lr=0.1, trunk_lr=0.1, optimizer="sgd", weight_decay=1e-4, schedule="milestones", augmented=True
)
"""The paper's: batches of 128, the rate falling tenfold at a half and at three quarters of the steps."""

REINFORCING = GateFit(
    steps=10_000, lr=1e-4, trunk_lr=1e-4, optimizer="sgd", weight_decay=1e-4, schedule="constant", augmented=True
)


def skipnet_pretrain(
    net: DynamicNet,
    source: Source,
    fitting: GateFit = PRETRAINING,
    *,
    teacher: nn.Module | None = None,
    price: float = 0.0,
) -> tuple[DynamicNet, GateTraining]:
    """Supervised pre-training: decisions hard on the way forward, soft on the way back. A copy of ``net``, and how it
    went.

    Loss: cross-entropy of the gated net, and ``price`` times the mean share of gated stages that run (0 in the paper;
    ours, a way to a budget without reinforcement learning). Run with static gates this fine-tunes a fixed set of
    blocks; there is then nothing but the trunk to train.

    Args:
        teacher: says what is right in place of labels, by its probabilities.

    Raises:
        FitError, SourceError: as `dynext.train.gate_loop.train_gates`; a negative price.

    Source: section 3.3.
    """
    if price < 0:
        raise FitError(f"price={price}; give 0 or more")

    def step(student: DynamicNet, lesson: TaughtBatch, draw: Generator, done: float) -> Stepped:
        runs: list[Tensor] = []

        def decide(g: int, logit_b: Tensor) -> Tensor:
            runs.append(straight_through(g, logit_b))
            return runs[-1]

        found = gated(student, lesson.x, decide)
        loss_b = F.cross_entropy(found.logits_bk, lesson.target, reduction="none")
        nothing = torch.zeros_like(loss_b)
        return Stepped(
            loss=loss_b.mean() + price * torch.stack(runs).mean(),
            cross_entropy=loss_b.mean(),
            reward_b=nothing,
            baseline_b=nothing,
            run_bg=found.run_bg,
        )

    return train_gates(
        net, source, step, fitting, method="SkipNet, supervised", teacher=teacher, options={"price": price}
    )


def skipnet_reinforce(
    net: DynamicNet,
    source: Source,
    fitting: GateFit = REINFORCING,
    *,
    teacher: nn.Module | None = None,
    alpha: float = 0.1,
    weight: float = 0.01,
    gamma: float = 1.0,
    baseline: bool = False,
    by_macs: bool = False,
) -> tuple[DynamicNet, GateTraining]:
    """Hybrid reinforcement learning, from pre-trained gates: min E_x E_g [L(y(x, g), y) - alpha / N sum_i R_i].

    Decisions are drawn. Loss: cross-entropy of the drawn path, which trains the stages, and ``weight`` times REINFORCE
    on the returns of `dynext.losses.gates.skipnet_returns`, which trains the gates. A copy of ``net``, and how it went.
    From untrained gates and an untrained net this is the paper's ablation, the worst of both worlds.

    Args:
        alpha: reward of skipping everything, in nats of cross-entropy; the paper's are .1, .01, .001.
        gamma: how much of what follows counts.
        baseline: compare a sample's return with the mean of the others (`without_oneself`). The expected gradient
        stays; ours. by_macs: weigh a skipped stage by its MACs instead of alike.

    Raises:
        FitError, SourceError: as `dynext.train.gate_loop.train_gates`; figures out of range.

    Source: section 3.4, eq. 2 to 4; weight and gamma as in its code.
    """
    if alpha < 0 or weight < 0 or not 0 <= gamma <= 1:
        raise FitError(f"alpha={alpha}, weight={weight}, gamma={gamma}; give 0 or more, and a gamma in [0, 1]")
    macs_g = torch.tensor([float(net.staged.stages[s].macs) for s in gates_of(net).at])
    cost_g = macs_g / macs_g.mean().clamp_min(1.0) if by_macs else torch.ones_like(macs_g)

    def step(student: DynamicNet, lesson: TaughtBatch, draw: Generator, done: float) -> Stepped:
        found = gated(student, lesson.x, sampled(draw))
        loss_b = F.cross_entropy(found.logits_bk, lesson.target, reduction="none")
        return_bg = skipnet_returns(found.run_bg, loss_b, alpha, gamma=gamma, cost_g=cost_g.to(loss_b))
        usual_bg = without_oneself(return_bg) if baseline else torch.zeros_like(return_bg)
        policy_b = reinforce(log_probability(found.logit_bg, found.run_bg), return_bg - usual_bg)
        return Stepped(
            loss=loss_b.mean() + weight * policy_b.mean(),
            cross_entropy=loss_b.mean(),
            reward_b=return_bg[:, 0],
            baseline_b=usual_bg[:, 0],
            run_bg=found.run_bg,
        )

    options = {"alpha": alpha, "weight": weight, "gamma": gamma, "baseline": baseline, "by_macs": by_macs}
    return train_gates(net, source, step, fitting, method="SkipNet, hybrid", teacher=teacher, options=options)
