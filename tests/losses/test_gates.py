"""Rewards by hand-computed tables; REINFORCE against the enumerated expectation on a net of three blocks."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gated_nets import LEARNED, gated_net, samples_for
from reference import rewards as slow
from torch.testing import assert_close

from dynext.losses.gates import (
    blockdrop_reward,
    correctness,
    exploration_bonus,
    leave_one_out_mean,
    log_probability,
    reinforce,
    skipnet_returns,
    unlocked_gates,
)
from dynext.net.masked_pass import gated, replayed

DRAW = torch.Generator().manual_seed(0)
RUN = (torch.rand(6, 4, generator=DRAW) < 0.5).double()
LOSS = torch.rand(6, generator=DRAW).double()
LOGIT = 3 * torch.randn(6, 4, generator=DRAW).double()


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_skipnets_returns(gamma: float) -> None:
    cost = torch.tensor([0.5, 1.0, 1.5, 1.0]).double()
    returns = skipnet_returns(RUN, LOSS, 0.1, gamma=gamma, cost_g=cost)
    assert_close(returns.numpy(), slow.skipnet_returns(RUN.numpy(), LOSS.numpy(), 0.1, gamma, cost.numpy()))
    alike = skipnet_returns(RUN, LOSS, 0.1, gamma=gamma)
    assert_close(alike.numpy(), slow.skipnet_returns(RUN.numpy(), LOSS.numpy(), 0.1, gamma, np.ones(4)))


def test_blockdrops_reward_by_hand() -> None:
    run = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    right = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
    assert blockdrop_reward(run, right, 5.0).tolist() == [0.0, 0.75, 1.0, -5.0, -5.0]
    for path, ok in zip(run, right, strict=True):
        reward = slow.blockdrop_reward(path.numpy(), bool(ok), 10.0)
        assert float(blockdrop_reward(path[None], ok[None], 10.0)) == reward
    half = blockdrop_reward(run[1:2], torch.tensor([0.5]), 5.0)
    assert float(half) == 0.5 * 0.75 - 0.5 * 5, "a teacher that is of two minds gives the mean"


def test_how_right_an_answer_is() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 5.0]])
    assert correctness(logits, torch.tensor([0, 1])).tolist() == [1.0, 0.0]
    belief = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]])
    assert_close(correctness(logits, belief), torch.tensor([0.7, 0.1]))


@pytest.mark.parametrize("mix", [1.0, 0.8])
def test_log_probabilities(mix: float) -> None:
    probability = log_probability(LOGIT, RUN, mix).sum(1).exp()
    p = 1 / (1 + np.exp(-LOGIT.numpy()))
    expected = [slow.policy_probability(p[b], RUN[b].numpy(), mix) for b in range(6)]
    assert_close(probability.numpy(), np.array(expected))
    sure = torch.tensor([[80.0, -80.0]])
    assert log_probability(sure, torch.tensor([[0.0, 1.0]]), mix).isfinite().all()


def test_the_exploration_bonus_is_half_of_the_entropy() -> None:
    p = 0.8 * LOGIT.sigmoid() + 0.2 * (1 - LOGIT.sigmoid())
    assert_close(exploration_bonus(LOGIT, 0.8), -p * p.log())


def test_the_curriculum_opens_one_gate_after_the_other_from_the_last() -> None:
    opened = [unlocked_gates(4, done=step / 10, ramp=0.8).int().tolist() for step in range(10)]
    last, two, three, four = [0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]
    assert opened == [last, last, two, two, three, three, four, four, four, four]
    assert unlocked_gates(3, done=0.0, ramp=1.0).int().tolist() == [0, 0, 1]
    assert unlocked_gates(3, done=1.0, ramp=1.0).all()


def test_the_mean_of_the_others() -> None:
    mean = leave_one_out_mean(LOGIT)
    for b in range(6):
        assert_close(mean[b], LOGIT[[i for i in range(6) if i != b]].mean(0))
    assert leave_one_out_mean(LOGIT[:1]).tolist() == [[0.0] * 4]


def test_no_gradient_flows_through_what_a_decision_was_worth() -> None:
    logit, worth = LOGIT.clone().requires_grad_(), LOSS.clone().requires_grad_()
    reinforce(log_probability(logit, RUN), worth).sum().backward()
    assert worth.grad is None
    assert_close(logit.grad, -(RUN - LOGIT.sigmoid()) * LOSS[:, None])


def gradients(net, loss) -> torch.Tensor:
    parameters = [p for p in net.gates.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, grads, strict=True)]
    )


@pytest.mark.parametrize("kind", sorted(LEARNED))
@pytest.mark.parametrize("method", ["skipnet", "skipnet, baseline", "blockdrop", "blockdrop, self-critical"])
def test_reinforce_is_the_gradient_of_the_enumerated_expectation(kind: str, method: str) -> None:
    """All 2^3 paths of a net of three blocks: sum_path p(path) grad(loss of path) = grad(-sum_path p(path) reward)."""
    net = gated_net(kind=kind, exits=False).double()
    net.staged.requires_grad_(False)
    x = samples_for(net, 3).double()
    y = net(x).argmax(1)  # right if nothing is skipped, and then perhaps not
    mix = 0.8 if "blockdrop" in method else 1.0
    expected = estimated = 0.0
    total = torch.zeros(3, dtype=torch.float64)
    for path in product((0.0, 1.0), repeat=3):
        result = gated(net, x, replayed(torch.tensor(path).expand(3, -1)))
        log_bg = log_probability(result.logit_bg, result.run_bg, mix)
        probability = log_bg.sum(1).exp()
        loss = F.cross_entropy(result.logits_bk, y, reduction="none")
        if "blockdrop" in method:
            reward = blockdrop_reward(result.run_bg, correctness(result.logits_bk, y), 5.0)
            advantage = reward - (0.3 if "critical" in method else 0.0)
        else:
            advantage = skipnet_returns(result.run_bg, loss, 0.5)
            reward = advantage[:, 0]
            # what a decision cannot change may be taken off: here a figure of each gate's own
            advantage = advantage - (torch.tensor([0.4, -1.0, 2.0]) if "baseline" in method else 0.0)
        total += probability.detach()
        expected = expected + gradients(net, -(probability * reward.detach()).sum())
        result = gated(net, x, replayed(torch.tensor(path).expand(3, -1)))
        estimate = reinforce(log_probability(result.logit_bg, result.run_bg, mix), advantage)
        estimated = estimated + gradients(net, (probability.detach() * estimate).sum())
    assert_close(total, torch.ones(3, dtype=torch.float64))
    assert float(expected.abs().max()) > 1e-3
    assert_close(estimated, expected)
