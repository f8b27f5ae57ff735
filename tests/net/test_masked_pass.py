"""The masked pass: decisions, their gradients, their costs."""

import math

import pytest
import torch
from gated_nets import LEARNED, gated_net, samples_for
from torch.testing import assert_close

from dynext.modules.gates import static_gates
from dynext.modules.skip_rule import runs, threshold_logit
from dynext.net.attach import attach_gates
from dynext.net.masked_pass import gated, greedy, replayed, sampled, straight_through, trunk_macs
from dynext.seeding import generator


def test_straight_through_is_hard_forward_and_soft_backward() -> None:
    logit = torch.tensor([-1.5, -0.1, 0.0, 0.3, 4.0], requires_grad=True)
    run = straight_through(0, logit)
    assert run.tolist() == [0.0, 0.0, 1.0, 1.0, 1.0]
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    (run * weight).sum().backward()
    p = logit.detach().sigmoid()
    assert_close(logit.grad, weight * p * (1 - p))


def test_the_gradient_of_a_decision_is_what_running_changes() -> None:
    """d loss / d logit_g = p (1 - p) <d loss / d out, F(x) - x>, for the last gate of a net, by hand."""
    net = gated_net(kind="feedforward", exits=False).double()
    x = samples_for(net).double()
    last = net.gates.at[-1]
    caught = {}

    def decide(g: int, logit: torch.Tensor) -> torch.Tensor:
        if g == net.num_gates - 1:
            logit.retain_grad()
            caught["logit"] = logit
        return straight_through(g, logit)

    gated(net, x, decide).logits_bk.square().sum().backward()
    gradient = caught["logit"].grad
    hard = gated(net, x, greedy([0.5] * net.num_gates)).run_bg
    live = (x,)
    for s, stage in enumerate(net.staged.stages[:last]):
        g = net.gates.at.index(s) if s in net.gates.at else None
        out = stage(*live)[0]
        live = (out if g is None else out.where(hard[:, g].view(-1, 1, 1, 1) > 0, live[0]),)
    ran = net.staged.stages[last](*live)[0]
    chosen = ran.where(hard[:, -1].view(-1, 1, 1, 1) > 0, live[0]).detach().requires_grad_()
    behind = (chosen,)
    for stage in net.staged.stages[last + 1 :]:
        behind = stage(*behind)
    behind[0].square().sum().backward()
    p = caught["logit"].detach().sigmoid()
    expected = p * (1 - p) * (chosen.grad * (ran - live[0])).sum((1, 2, 3))
    assert_close(gradient, expected.detach())


def test_the_masked_pass_of_open_gates_is_the_net_and_of_closed_ones_leaves_stages_out() -> None:
    net = gated_net(exits=True)
    x = samples_for(net)
    whole = gated(net, x, greedy([0.0] * 3))
    assert_close(whole.logits_bk, net(x))
    assert_close(whole.taps, net.taps(x)[0])
    closed = attach_gates(net, static_gates([0, 0, 0]))
    assert gated(closed, x, straight_through).run_bg.tolist() == [[0.0] * 3] * len(x)
    off = gated(closed, x, greedy([0.5] * 3), [False] * 3)
    assert off.run_bg.all()
    assert off.logit_bg.min() == math.inf
    assert_close(off.logits_bk, net(x))


@pytest.mark.parametrize("kind", sorted(LEARNED))
def test_drawn_decisions_follow_the_seed_and_can_be_replayed(kind: str) -> None:
    net = gated_net(kind=kind)
    x = samples_for(net)
    first, again = (gated(net, x, sampled(generator(3))) for _ in range(2))
    other = gated(net, x, sampled(generator(4)))
    assert torch.equal(first.run_bg, again.run_bg)
    assert_close(first.logits_bk, again.logits_bk, rtol=0, atol=0)
    assert not torch.equal(first.run_bg, other.run_bg)
    again = gated(net, x, replayed(first.run_bg))
    assert_close(again.logits_bk, first.logits_bk, rtol=0, atol=0)
    assert_close(again.logit_bg, first.logit_bg, rtol=0, atol=0)


@pytest.mark.parametrize("mix", [1.0, 0.8])
def test_drawn_decisions_have_their_probability(mix: float) -> None:
    logit = torch.tensor([-2.0, 0.0, 1.0]).repeat(20_000)
    ran = sampled(generator(0), mix)(0, logit).view(-1, 3).mean(0)
    p = torch.tensor([-2.0, 0.0, 1.0]).sigmoid()
    assert_close(ran, mix * p + (1 - mix) * (1 - p), rtol=0, atol=0.015)


def test_thresholds_as_logits() -> None:
    assert threshold_logit(None) == threshold_logit(0.0) == -math.inf
    assert threshold_logit(1.0) == math.inf
    assert threshold_logit(0.5) == 0
    assert math.isclose(1 / (1 + math.exp(-threshold_logit(0.3))), 0.3)
    logit = torch.tensor([-math.inf, -5.0, math.nan, 5.0, math.inf])
    assert runs(logit, 0.5).tolist() == [False, False, True, True, True]
    assert runs(logit, 0.0).all()
    assert runs(logit, 1.0).tolist() == [False, False, True, False, True]


def test_costs_by_hand() -> None:
    net = gated_net(exits=True)
    macs = [stage.macs for stage in net.staged.stages]
    at, exit = net.gates.at, net.exits[0].after
    ask = net.gates.macs_g
    run_bg = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    before = [g for g in range(3) if at[g] <= exit]
    assert len(before) == 2
    expected = [
        [sum(macs[: exit + 1]) + ask[0] + ask[1], sum(macs) + sum(ask)],
        [sum(macs[: exit + 1]) + ask[0] + ask[1] - macs[at[0]], sum(macs) + sum(ask) - macs[at[0]] - macs[at[2]]],
        [
            sum(macs[: exit + 1]) + ask[0] + ask[1] - macs[at[0]] - macs[at[1]],
            sum(macs) + sum(ask) - sum(macs[s] for s in at),
        ],
    ]
    assert trunk_macs(net, run_bg, [0.5] * 3).tolist() == expected
    assert trunk_macs(net, run_bg[:1], [None, 0.5, None]).tolist() == [
        [sum(macs[: exit + 1]) + ask[1], sum(macs) + ask[1]]
    ]
    policy = gated_net(kind="policy", exits=True)
    start = policy.gates.start_macs
    assert trunk_macs(policy, run_bg[:1], [0.5] * 3).tolist() == [[sum(macs[: exit + 1]) + start, sum(macs) + start]]
