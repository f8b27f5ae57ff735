"""What does not go together with skipping says so."""

from dataclasses import replace

import pytest
from gated_nets import LEARNED, gated_net, samples_for, source_of
from tables import make_skipping, make_table

from dynext.errors import PolicyError, SplitError
from dynext.modules.gates import recurrent_gates
from dynext.net.attach import attach_gates
from dynext.net.cascade import cascade
from dynext.net.collect import collect, timed
from dynext.net.dynamic_net import DynamicNet
from dynext.net.masked_pass import gated, greedy
from dynext.net.measure import measure
from dynext.policy.batch_budget import plan_batch, simulate_batch
from dynext.policy.choose import choose
from dynext.policy.fronts.exact import exact_front
from dynext.policy.fronts.front import Front
from dynext.policy.fronts.quota import quota_front
from dynext.policy.fronts.risk_control import control_risk
from dynext.policy.policy import Policy
from dynext.policy.timed_table import clocked

KINDS = sorted(LEARNED)


def test_what_does_not_fit_is_refused() -> None:
    net = gated_net()
    x = samples_for(net)
    with pytest.raises(PolicyError, match=r"policy is for 2 gates, this net has 3"):
        net.run(x, Policy.skipping(net.num_exits, 2))
    bare = DynamicNet(net.staged, net.exits)
    with pytest.raises(PolicyError, match=r"this net has 0; .* attach the gates it was made with"):
        bare.run(x, Policy.skipping(net.num_exits, 3))
    with pytest.raises(PolicyError, match="the net has no gates"):
        gated(bare, x, greedy([0.5] * 3))


def test_what_knows_of_exits_only_refuses_skipping() -> None:
    whole, table = make_table(basis="labels"), make_skipping(basis="labels")
    policy = Policy(threshold_e=(0.7,) * 3 + (0.0,), temperature_e=(1.0,) * 4)
    skipping = replace(policy, keep_g=table.keep_g)
    refusals = {
        "a front": [lambda: exact_front(table), lambda: quota_front(table)],
        "risk control": [lambda: control_risk(exact_front(whole), table, max_drop=0.1)],
        "a batch's budget": [
            lambda: plan_batch(table, skipping, budget=0.5),
            lambda: simulate_batch(table, plan_batch(whole, policy, budget=0.5)),
        ],
        "a budget in milliseconds": [lambda: clocked(table), lambda: choose([table], budget_ms=1.0)],
    }
    for what, refused in refusals.items():
        for call in refused:
            with pytest.raises(PolicyError, match=f"{what} knows of exits only"):
                call()
    with pytest.raises(PolicyError, match="a front knows of exits only"):
        Front(policies=(skipping,), cost_p=(0.5,), right_p=(0.5,), static_right=0.5)
    assert plan_batch(whole, replace(policy, keep_g=(None, None)), budget=0.5).macs == 0.5 * whole.static_macs


def test_a_table_with_skips_holds_no_times() -> None:
    net = gated_net()
    x = samples_for(net)
    net.cost = measure(net, rows=(1,), budget_ms=1.0)
    assert timed(collect(net, source_of(x)), net).trunk_ms_e is not None
    assert timed(collect(net, source_of(x), keep=(0.5,) * net.num_gates), net).trunk_ms_e is None


def test_a_cascade_and_gates_refuse_each_other() -> None:
    net = gated_net()
    with pytest.raises(SplitError, match="stages of a cascade are not skipped, and this net has gates"):
        cascade(net, "mean")
    with pytest.raises(SplitError, match="stages of a cascade are not skipped; give a net"):
        attach_gates(cascade(DynamicNet(net.staged, net.exits), "mean"), recurrent_gates())
