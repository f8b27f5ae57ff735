import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import make_table

from dynext.errors import PolicyError
from dynext.policy.choose import choose
from dynext.policy.confidence import CONFIDENCES, confidences
from dynext.policy.fronts.shared import shared_front
from dynext.policy.policy import Policy
from dynext.policy.rule import PlainRule, SafeRule
from dynext.policy.sweep import Sweeper, exit_sets, threshold_grid
from dynext.policy.table import simulate


@pytest.mark.parametrize("measure", CONFIDENCES)
@pytest.mark.parametrize("basis", ["labels", "teacher"])
def test_a_sweep_counts_what_simulate_counts(measure, basis):
    table = make_table(60, basis=basis, noise=2.0)
    logits_nek = table.logits_nek.clone()
    logits_nek[7, 1] = torch.nan
    table = make_table(60, basis=basis, logits_nek=logits_nek)
    temperature_e = (2.0, 1.5, 0.7, 1.0)
    met_exactly = confidences(table.logits_nek, measure, temperature_e)[:5, 0]
    grid_t = torch.cat([threshold_grid([table], measure, temperature_e), met_exactly]).unique()
    for on in exit_sets(3):
        sweep = Sweeper(table, measure, temperature_e, grid_t, "drop").sweep(on)
        for t in {*range(0, len(grid_t), 7), *torch.searchsorted(grid_t, met_exactly.contiguous()).tolist()}:
            threshold_e = (*(float(grid_t[t]) if e in on else None for e in range(3)), 0.0)
            outcome = simulate(table, Policy(confidence=measure, threshold_e=threshold_e, temperature_e=temperature_e))
            assert math.isclose(sweep.cost_t[t], outcome.macs / 4000)
            heads_n = sum((outcome.exit_n >= e).double() for e in on)
            assert math.isclose(sweep.heads_t[t], float(heads_n.mean()), rel_tol=1e-9)
            assert sweep.right_t[t] == int(outcome.right_n.sum())
            assert sweep.support_t[t] == min(int((outcome.exit_n == e).sum()) for e in on)
            right_full_n = table.right_ne[:, -1]
            assert sweep.lost_t[t] == int((right_full_n & ~outcome.right_n).sum())
            assert sweep.gained_t[t] == int((~right_full_n & outcome.right_n).sum())
            answer_n = table.answer_ne.gather(1, outcome.exit_n[:, None])
            full_nk = table.logits_nek[:, -1].softmax(1)
            weight_n = full_nk.amax(1) - full_nk.gather(1, answer_n)[:, 0]
            expected = float(weight_n.sum()) if basis == "teacher" else sweep.lost_t[t]
            assert math.isclose(sweep.weight_t[t], expected, rel_tol=1e-5, abs_tol=1e-6)


@given(st.integers(0, 10), st.sampled_from(["labels", "teacher"]), st.sampled_from([SafeRule(min_support=5), "plain"]))
@settings(max_examples=12)
def test_choose_is_monotone_in_the_budget(seed, basis, rule):
    table = make_table(120, seed=seed, basis=basis, noise=1.5)
    before = (0.0, 0.0)
    for budget in (0.4, 0.5, 0.6, 0.8, 1.0, 1.2):
        outcome = simulate(table, choose(table, budget=budget, rule=rule))
        now = (float(outcome.right_n.double().mean()), outcome.macs)
        assert now[0] >= before[0]
        assert now[1] >= before[1]
        assert outcome.macs <= budget * 4000 + 1e-6
        before = now


def test_more_may_be_lost_more_is_saved():
    table = make_table(400, noise=1.0)
    saved = [simulate(table, choose(table, max_drop=drop)).saved for drop in (0.005, 0.02, 0.05, 0.2, 1.0)]
    assert saved == sorted(saved)
    assert 0 <= saved[0] < 0.5 < saved[-1]


def test_without_wishes_a_point_may_be_lost():
    table = make_table(400)
    assert choose(table) == choose(table, max_drop=0.01)


@pytest.mark.parametrize("rule", ["safe", "plain"])
def test_the_higher_the_overhead_the_fewer_exits_are_on(rule):
    table = make_table(400, noise=1.0)
    policies = [choose(table, max_drop=0.05, rule=rule, overhead=overhead) for overhead in (0.0, 0.1, 0.9)]
    exits = [sum(policy.enabled_e) for policy in policies]
    assert exits == sorted(exits, reverse=True)
    assert exits[0] > exits[-1] == 1
    macs = [simulate(table, policy).macs for policy in policies]
    assert macs == sorted(macs)


def test_drop_weighs_what_disagreement_counts_whole():
    table = make_table(300, noise=1.5)
    weighed = simulate(table, choose(table, max_drop=0.02)).saved
    assert weighed > simulate(table, choose(table, max_drop=0.02, rule=SafeRule(risk="disagreement"))).saved


def test_no_exit_is_safe_is_an_answer():
    policy = choose(make_table(100, noise=30.0), max_drop=0.01)
    assert policy.threshold_e == (None, None, None, 0.0)
    assert policy.note.startswith("no exit is safe within 1.00%: the first test")
    assert "no exit is safe: none saves MACs with 20 samples" in choose(make_table(10)).note
    assert choose(make_table(30, e=1)).threshold_e == (0.0,)
    assert "none saves MACs. Chosen" in choose(make_table(30, e=1), rule="plain").note, "which asks for no 20 samples"


def test_every_exit_that_is_on_has_its_support():
    table = make_table(300, noise=0.5)
    policy = choose(table, max_drop=0.1, rule=SafeRule(min_support=30))
    left_e = torch.bincount(simulate(table, policy).exit_n, minlength=4)
    on = [e for e in range(3) if policy.enabled_e[e]]
    assert on
    assert all(left_e[e] >= 30 for e in on)


def test_rows_of_nan_do_not_disturb():
    table = make_table(200)
    logits_nek = table.logits_nek.clone()
    logits_nek[::10] = torch.nan
    policy = choose(make_table(200, logits_nek=logits_nek), max_drop=0.2)
    assert all(t is None or math.isfinite(t) for t in policy.threshold_e)
    assert any(policy.enabled_e[:-1])
    all_nan = make_table(30, logits_nek=torch.full((30, 4, 5), torch.nan))
    assert choose(all_nan).enabled_e == (False, False, False, True)


def test_all_leave_at_the_first_exit_when_it_is_as_good():
    full = make_table(400, noise=0.0)
    policy = choose(full, max_drop=0.02)
    assert simulate(full, policy).share_e == (1, 0, 0, 0)


def test_of_several_tables_the_worst_counts():
    good, bad = make_table(300, noise=0.3), make_table(300, noise=2.0, seed=1)
    both = choose([good, bad], max_drop=0.03)
    alone = choose(bad, max_drop=0.03)
    assert simulate(good, both).saved <= simulate(good, choose(good, max_drop=0.03)).saved
    assert 1 - simulate(bad, both).agreement <= 1 - simulate(bad, choose(bad, max_drop=1.0)).agreement
    assert both.note.count("n=300") == 2
    assert choose([good, make_table(300, noise=30.0)]).enabled_e == (False, False, False, True)
    assert choose(good).enabled_e != (False, False, False, True)
    assert choose([bad], max_drop=0.03) == alone


def test_budget_and_loss_together():
    table = make_table(400, noise=1.0)
    loose = choose(table, max_drop=0.05, budget=0.99)
    assert loose.threshold_e == choose(table, max_drop=0.05).threshold_e
    tight = choose(table, max_drop=0.05, budget=0.3)
    assert tight.threshold_e == loose.threshold_e
    assert "the budget is not met" in tight.note
    assert "the budget is not met" not in loose.note


def test_an_impossible_budget_names_the_cheapest_within_reach():
    with pytest.raises(PolicyError, match=r"budget 0.1 .* cannot be met: the cheapest within reach is 0\.25"):
        choose(make_table(), budget=0.1)


def test_the_note_says_how():
    note = choose(make_table(400), max_drop=0.02).note
    for words in (
        "estimated drop",
        "bound",
        "made-up samples (n=400)",
        "basis teacher",
        "rule safe",
        "Clopper-Pearson",
    ):
        assert words in note
    assert "accuracy" not in note
    assert "synthesized" not in note
    assert "chosen on synthesized samples" in choose(make_table(400, synthetic=True), max_drop=0.02).note
    assert choose(make_table(400, basis="labels")).basis == "labels"


def test_many_exits_are_tried_in_even_runs():
    assert len(list(exit_sets(6))) == 63
    sets = list(exit_sets(12))
    assert tuple(range(12)) in sets
    assert (1, 3, 5) in sets
    assert len(sets) < 200
    table = make_table(200, e=9)
    assert simulate(table, choose(table, max_drop=0.1)).saved > 0


def test_the_front_rises_and_ends_at_the_best():
    table = make_table(150, basis="labels")
    cost_p, right_p = shared_front(table, "max_probability", (1.0,) * 4)
    assert (np.diff(cost_p) > 0).all()
    assert (np.diff(right_p) > 0).all()
    assert right_p[-1] >= float(table.right_ne[:, -1].double().mean())


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        ({"budget": 0.0}, "budget 0.0; give a positive share"),
        ({"budget": math.nan}, "budget nan"),
        ({"max_drop": -0.1}, "max_drop -0.1; give a share"),
        ({"max_drop": math.nan}, "max_drop nan"),
        ({"budget_ms": 0.0}, "budget_ms 0; give more than 0"),
        ({"budget_ms": 1.0, "budget": 0.5}, "budget 0.5 and budget_ms 1.0; give one of them"),
        ({"rule": "bold"}, "rule 'bold'; give 'safe', 'plain', or a SafeRule"),
        ({"overhead": 1.0}, "overhead 1.0; give a share"),
        ({"confidence": "margn"}, "did you mean margin"),
        ({"temperature": (1.0,)}, "1 temperatures for 4 exits"),
        ({"temperature": (1.0, math.nan, 1.0, 1.0)}, "temperature nan of exit 1"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(wishes, says):
    with pytest.raises(PolicyError, match=says):
        choose(make_table(trunk_ms_e=(1.0, 2.0, 3.0, 4.0), head_ms_e=(0.1, 0.1, 0.1, 0.0)), **wishes)


@pytest.mark.parametrize(
    ("rule", "settings", "says"),
    [
        (SafeRule, {"delta": 0.0}, "delta 0.0"),
        (SafeRule, {"delta": math.nan}, "delta nan"),
        (SafeRule, {"min_support": -1}, "min_support -1"),
        (SafeRule, {"risk": "all"}, "risk 'all'; give one of drop, disagreement"),
        (PlainRule, {"risk": "all"}, "risk 'all'"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rule, settings, says):
    with pytest.raises(PolicyError, match=says):
        rule(**settings)


def test_a_rule_by_its_name_is_one_with_its_defaults():
    table = make_table(300, noise=1.0)
    assert choose(table, max_drop=0.05) == choose(table, max_drop=0.05, rule=SafeRule(delta=0.05, min_support=20))
    assert choose(table, max_drop=0.05, rule="plain") == choose(table, max_drop=0.05, rule=PlainRule(risk="drop"))


def test_tables_of_several_kinds_are_refused():
    with pytest.raises(PolicyError, match="2 tables of 2 kinds"):
        choose([make_table(), make_table(basis="labels")])
    with pytest.raises(PolicyError, match="no table to choose by"):
        choose([])
