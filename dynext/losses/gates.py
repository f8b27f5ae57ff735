"""Rewards of sampled decisions to run or skip, and the policy gradient that learns from them.

Shapes: b samples, g gated stages, k classes. ``run_bg`` is 1 where a sample runs a stage, 0 where it skips it; rewards
and returns carry no gradient.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def log_probability(logit_bg: Tensor, run_bg: Tensor, mix: float = 1.0) -> Tensor:
    """Log-probability ``[b g]`` of each decision, drawn with probability ``mix p + (1 - mix)(1 - p)``, p the sigmoid.

    >>> log_probability(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])).exp().tolist()
    [[0.5, 0.5]]

    Source: REINFORCE, Williams 1992; the mixture that keeps exploring, BlockDrop, Wu et al., CVPR 2018, eq. 6.
    """
    sign_bg = 2 * run_bg - 1
    as_drawn_bg = F.logsigmoid(sign_bg * logit_bg)
    if mix == 1:
        return as_drawn_bg
    opposite_bg = F.logsigmoid(-sign_bg * logit_bg)
    return torch.logaddexp(math.log(mix) + as_drawn_bg, math.log1p(-mix) + opposite_bg)


def reinforce(log_probability_bg: Tensor, advantage: Tensor) -> Tensor:
    """A loss ``[b]`` whose gradient is, in expectation, that of minus the expected reward.

    Args:
        advantage: reward less a baseline, of each sample ``[b]`` or of each decision ``[b g]``.

    Source: Williams, Machine Learning 1992.
    """
    advantage_bg = advantage if advantage.ndim == 2 else advantage[:, None]
    return -(log_probability_bg * advantage_bg.detach()).sum(1)


def skipnet_returns(
    run_bg: Tensor, loss_b: Tensor, alpha: float, *, gamma: float = 1.0, cost_g: Tensor | None = None
) -> Tensor:
    """Return ``[b g]`` of each decision: what is skipped from it on, less the sample's loss at the end.

    r_i = (1 - a_i) C_i alpha / N, R_i = r_i + gamma R_{i+1}, R_{N+1} = -loss.

    Args:
        alpha: reward of skipping all N stages.
        gamma: discount, how much of what follows counts.
        cost_g: C, what skipping each stage is worth, 1 on average; all alike without it.

    >>> skipnet_returns(torch.tensor([[1.0, 0.0]]), torch.tensor([0.3]), alpha=0.1).round(decimals=2).tolist()
    [[-0.25, -0.25]]

    Source: SkipNet, Wang et al., ECCV 2018, arXiv:1711.09485, eq. 3 and 4; gamma as in its code.
    """
    num_gates = run_bg.shape[1]
    reward_bg = (1 - run_bg) * alpha / max(num_gates, 1)
    reward_bg = reward_bg if cost_g is None else reward_bg * cost_g
    following_b = -loss_b.detach()
    return_gb = []
    for g in reversed(range(num_gates)):
        following_b = reward_bg[:, g] + gamma * following_b
        return_gb.append(following_b)
    return torch.stack(return_gb[::-1], dim=1)


def leave_one_out_mean(value_bg: Tensor) -> Tensor:
    """For each sample the mean over all others ``[b g]``: a baseline that leaves the expected gradient as it is.

    A sample alone gets 0.

    >>> leave_one_out_mean(torch.tensor([[1.0], [2.0], [6.0]]))[:, 0].tolist()
    [4.0, 3.5, 1.5]

    Source: Kool et al., Buy 4 REINFORCE samples, get a baseline for free, ICLR 2019 workshop on structured prediction.
    There the others are further draws for the same input; ours are the other inputs of the batch.
    """
    return (value_bg.sum(0) - value_bg) / max(len(value_bg) - 1, 1)


def correctness(logits_bk: Tensor, target: Tensor) -> Tensor:
    """How right each answer is ``[b]``: 0 or 1 by labels ``[b]``, or its probability by a teacher's ``[b k]``."""
    answer_b = logits_bk.argmax(1)
    if target.ndim == 1:
        return (answer_b == target).to(logits_bk.dtype)
    return target.gather(1, answer_b[:, None])[:, 0]


def blockdrop_reward(run_bg: Tensor, right_b: Tensor, penalty: float) -> Tensor:
    """1 - (share of the stages that run)^2 for a right answer, -penalty for a wrong one ``[b]``.

    An answer that is right with a probability (`correctness`) gets the mean of the two.

    >>> blockdrop_reward(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([1.0, 0.0]), penalty=5.0).tolist()
    [0.75, -5.0]

    Source: BlockDrop, Wu et al., CVPR 2018, arXiv:1711.08393, eq. 3; the mean over the teacher's belief is ours.
    """
    return right_b * (1 - run_bg.mean(1).square()) - (1 - right_b) * penalty


def unlocked_gates(num_gates: int, done: float, ramp: float) -> Tensor:
    """The curriculum: which gates may learn ``[g]`` (bool) when a share ``done`` of the steps is done.

    At first the last gate alone, then one more from the end at a time, in equal parts of the first ``ramp`` of the
    steps.

    >>> unlocked_gates(4, done=0.3, ramp=0.8).int().tolist()
    [0, 0, 1, 1]

    Source: BlockDrop, Wu et al., CVPR 2018, section 3.3 (there one more every epoch).
    """
    count = min(1 + int(done / ramp * num_gates + 1e-9), num_gates)
    return torch.arange(num_gates) >= num_gates - count


def exploration_bonus(logit_bg: Tensor, mix: float) -> Tensor:
    """-p' log p' of each gate ``[b g]``, p' the mixed probability to run: larger where decisions are not yet certain.

    Source: BlockDrop's code (Wu et al., CVPR 2018), which takes this half of the entropy only.
    """
    log_bg = log_probability(logit_bg, torch.ones_like(logit_bg), mix)
    return -log_bg.exp() * log_bg
