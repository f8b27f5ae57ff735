"""Budgets for a batch and in milliseconds: kept to the last MAC, spent on the hard samples."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tables import make_table
from zoo import NETS

import dynext as dx
from dynext.errors import PolicyError, SourceError
from dynext.net.collect import table_of, timed
from dynext.policy.batch_budget import going_on, plan_batch, simulate_batch
from dynext.policy.choose import choose
from dynext.policy.policy import Policy
from dynext.policy.table import simulate
from dynext.policy.timed_table import clocked


@given(st.floats(0.27, 1.4), st.integers(1, 90), st.integers(0, 3))
def test_no_batch_spends_more_than_its_budget(budget: float, n: int, off: int) -> None:
    whole = make_table(200, noise=1.5)
    threshold_e = tuple(None if e == off and off else 0.7 for e in range(3))
    plan = plan_batch(whole, Policy(threshold_e=(*threshold_e, 0.0), temperature_e=(1.0,) * 4), budget=budget)
    outcome = simulate_batch(whole.subset(torch.arange(n)), plan)
    assert int(outcome.macs_n.sum()) <= budget * whole.static_macs * n + 1e-6


def test_the_budget_is_spent_and_on_the_rows_that_are_hard() -> None:
    table = make_table(2000, noise=1.5, basis="labels")
    spent = []
    for budget in (0.3, 0.5, 0.7, 0.9):
        policy = choose(table, budget=budget, rule="plain")
        outcome = simulate_batch(table, plan_batch(table, policy, budget=budget))
        spent.append(outcome.macs / table.static_macs / budget)
        first = policy.enabled_e.index(True)
        sure_n = table.logits_nek[:, first].softmax(1).amax(1)
        left_n = outcome.exit_n == first
        assert 0 < int(left_n.sum()) < len(table)
        assert sure_n[left_n].min() >= sure_n[~left_n].max()
        assert outcome.accuracy > float(table.right_ne[:, 0].double().mean())
    assert min(spent) > 0.9


def test_the_least_sure_go_on() -> None:
    sure_b = torch.tensor([0.9, 0.2, torch.nan, 0.5])
    assert going_on(sure_b, left=25.0, onward=10.0, next_macs=5).tolist() == [1, 2]
    assert going_on(sure_b, left=25.0, onward=1.0, next_macs=25).tolist() == [2]
    assert going_on(sure_b, left=4.0, onward=10.0, next_macs=5).tolist() == []


def dynamic() -> tuple[dx.DynamicNet, torch.Tensor]:
    model, example = NETS["unet_like"]()
    staged = dx.split(model, example)
    net = dx.attach(staged, dx.heads.pooled_heads(staged.num_classes))
    return net, torch.randn(40, *example.shape[1:], generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("budget", [0.3, 0.6, 0.9, 5.0])
def test_what_runs_is_what_was_planned(budget: float) -> None:
    net, x = dynamic()
    with torch.no_grad():
        table = table_of(net, net.all_exits(x), label_n=None, rows="made-up samples")
    limit_e = table.logits_nek.softmax(-1).amax(-1).median(0).values.tolist()
    limit_e[1] = None
    plan = plan_batch(
        table, Policy(threshold_e=(*limit_e[:-1], 0.0), temperature_e=(1.0,) * net.num_exits), budget=budget
    )
    out, planned = dx.policies.run_batch(net, x, plan), simulate_batch(table, plan)
    assert out.exit.tolist() == planned.exit_n.tolist()
    assert out.macs.tolist() == planned.macs_n.tolist()
    assert int(out.macs.sum()) <= budget * table.static_macs * len(x)
    torch.testing.assert_close(out.logits, table.logits_nek[torch.arange(40), out.exit], rtol=1e-4, atol=1e-5)
    if budget > 1:
        assert (out.exit == net.num_exits - 1).all()


def test_plans_that_do_not_fit_are_refused() -> None:
    net, x = dynamic()
    with torch.no_grad():
        table = table_of(net, net.all_exits(x), label_n=None, rows="made-up samples")
    policy = Policy(threshold_e=(*[0.5] * (net.num_exits - 1), 0.0), temperature_e=(1.0,) * net.num_exits)
    with pytest.raises(PolicyError, match=r"the first exit that runs takes"):
        plan_batch(table, policy, budget=0.001)
    for endless in (float("nan"), float("inf")):
        with pytest.raises(PolicyError, match="a finite number"):
            plan_batch(table, policy, budget=endless)
    plan = plan_batch(table, policy, budget=0.9)
    costlier = replace(plan, segment_macs_e=tuple(macs + 1 for macs in plan.segment_macs_e))
    with pytest.raises(PolicyError, match="make a plan on a table of this net"):
        dx.policies.run_batch(net, x, costlier)
    with pytest.raises(SourceError, match="give one or more of shape"):
        dx.policies.run_batch(net, x[:0], plan)
    with pytest.raises(PolicyError, match="lengths|plan of"):
        replace(plan, segment_macs_e=(1,))


def test_milliseconds_are_a_budget_like_macs() -> None:
    ms = {"trunk_ms_e": (1.0, 2.0, 6.0, 10.0), "head_ms_e": (0.5, 0.1, 0.1, 0.0)}
    table = make_table(400, noise=1.0, **ms)
    for budget in (3.0, 6.0):
        policy = choose(table, budget_ms=budget)
        assert simulate(table, policy).ms <= budget
        assert "of the static milliseconds" in policy.note
    assert (
        simulate(table, choose(table, budget_ms=6.0)).agreement
        >= simulate(table, choose(table, budget_ms=3.0)).agreement
    )
    same = make_table(400, noise=1.0, trunk_ms_e=(0.1, 0.2, 0.3, 0.4), head_ms_e=(0.001, 0.002, 0.003, 0.0))
    assert choose(same, budget_ms=0.2).threshold_e == choose(same, budget=0.5).threshold_e
    assert clocked(table).trunk_macs_e == (1_000_000, 2_000_000, 6_000_000, 10_000_000)
    with pytest.raises(PolicyError, match="holds no measured times"):
        choose(make_table(50), budget_ms=1.0)
    with pytest.raises(PolicyError, match="give one of them"):
        choose(table, budget_ms=1.0, budget=0.5)


def test_a_table_takes_times_that_were_measured_later() -> None:
    net, x = dynamic()
    with torch.no_grad():
        table = table_of(net, net.all_exits(x), label_n=None, rows="made-up samples")
    net.cost = dx.measure(net, rows=(1,), budget_ms=0.0)
    with_times = timed(table, net)
    assert with_times.trunk_ms_e[-1] == pytest.approx(net.cost.static(1))
    assert torch.equal(with_times.logits_nek, table.logits_nek)
    assert table.trunk_ms_e is None
