import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import bounds as slow
from tables import make_skipping, make_table

from dynext.core.calibrate import calibrate
from dynext.core.confidence import CONFIDENCES, confidences
from dynext.core.policy import Policy
from dynext.core.search import choose
from dynext.core.sweep import Sweep, Sweeper, exit_sets, front, threshold_grid
from dynext.core.table import simulate
from dynext.core.verdict import Judge, cautious_path
from dynext.errors import PolicyError


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
            looked_n = sum((outcome.exit_n >= e).double() for e in on)
            assert math.isclose(sweep.looks_t[t], float(looked_n.mean()), rel_tol=1e-9)
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


def test_the_drop_bound_by_hand():
    table = make_table(100, noise=2.0)
    grid_t = threshold_grid([table], "margin", (1.0,) * 4)
    plain = Sweeper(table, "margin", (1.0,) * 4, grid_t, "disagreement").sweep((0, 2))
    drop = Sweeper(table, "margin", (1.0,) * 4, grid_t, "drop").sweep((0, 2))
    for t in (0, 50, len(grid_t) - 1):
        share = 1 - slow.lower_bound(100 - int(plain.lost_t[t]), 100, 0.05)
        assert math.isclose(plain.drop_bound_t(0.05)[t], share, rel_tol=1e-6)
        assert drop.drop_t()[t] <= drop.drop_bound_t(0.05)[t] < share
    assert 0 < drop.usual_square < drop.usual_weight < 1


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_rows_of_one_weight_are_bounded_as_that_many_rows(weight):
    lost_t = np.array([0.0, 3.0, 40.0])
    none_t = np.zeros(3)
    sweep = Sweep(
        cost_t=none_t,
        looks_t=none_t,
        support_t=none_t,
        right_t=none_t,
        lost_t=lost_t,
        gained_t=np.array([0.0, 1.0, 40.0]),
        weight_t=lost_t * weight,
        square_t=lost_t * weight**2,
        usual_weight=weight,
        usual_square=weight**2,
        doubt_t=none_t,
        rows=100,
    )
    lost = [1 - slow.lower_bound(100 - hit, 100, 0.05) for hit in (0, 3, 40)]
    expected = [weight * lost[0], weight * lost[1] - 0.01, max(weight * lost[2] - 0.4, 0)]
    np.testing.assert_allclose(sweep.drop_bound_t(0.05), expected, rtol=1e-6)


@given(st.integers(0, 10), st.sampled_from(["labels", "teacher"]), st.sampled_from(["safe", "plain"]))
@settings(max_examples=12)
def test_choose_is_monotone_in_the_budget(seed, basis, rule):
    table = make_table(120, seed=seed, basis=basis, noise=1.5)
    before = (0.0, 0.0)
    for budget in (0.4, 0.5, 0.6, 0.8, 1.0, 1.2):
        outcome = simulate(table, choose(table, budget=budget, rule=rule, min_support=5))
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


def test_the_plain_rule_takes_what_was_observed_and_the_safe_rule_less():
    table = make_table(300, noise=1.5)
    plain = simulate(table, choose(table, max_drop=0.03, rule="plain", risk="disagreement"))
    safe = simulate(table, choose(table, max_drop=0.03, risk="disagreement"))
    assert 0.97 <= plain.agreement < safe.agreement
    assert safe.saved < plain.saved


def test_a_threshold_is_not_safe_below_one_that_failed():
    sure_n = torch.linspace(6.0, 0.5, 400)
    right_n, full_right_n = torch.ones(400), torch.ones(400)
    right_n[:20] = -1  # the surest answers are wrong
    full_right_n[100:200] = -1  # and later ones make more than good for them
    logits_ne = torch.stack([sure_n * right_n, full_right_n], 1)
    logits_nek = torch.stack([logits_ne, -logits_ne], 2)
    table = make_table(400, 2, 2, logits_nek=logits_nek, label_n=torch.zeros(400).long(), basis="labels")
    assert choose(table, rule="plain").enabled_e == (True, True)
    assert choose(table).enabled_e == (False, True)


def test_the_order_of_the_safe_rule_knows_nothing_of_who_was_right():
    table = make_table(300, noise=0.7, basis="labels")
    other = replace(table, label_n=table.label_n.flip(0))
    judge = Judge(rule="safe", delta=0.05, min_support=20, look=0.0)
    paths = []
    for one in (table, other):
        grid = threshold_grid([one], "max_probability", (1.0,) * 4)
        sweeper = Sweeper(one, "max_probability", (1.0,) * 4, grid, "drop")
        path = cautious_path([judge.verdict(on, [sweeper.sweep(on)]) for on in exit_sets(3)])
        paths.append([(verdict.on, t) for verdict, t in path])
        cost = [verdict.cost_t[t] for verdict, t in path]
        doubt = [verdict.doubt_t[t] for verdict, t in path]
        assert cost == sorted(cost, reverse=True)
        assert doubt == sorted(doubt)
        assert len({on for on, _ in paths[-1]}) > 1
    assert paths[0] == paths[1]


def test_an_exit_that_is_wrong_and_sure_of_it_does_not_stop_those_behind_it():
    good, other = make_table(600, seed=1), make_table(600, seed=2)
    logits_nek = other.logits_nek.clone()
    logits_nek[:, 0] = logits_nek[:, 0].roll(1, dims=1) * 9  # another class, and no doubt at all
    bad = replace(other, logits_nek=logits_nek)
    assert not any(choose(bad, max_drop=0.05, risk="disagreement").enabled_e[:-1])
    both = choose([good, bad], max_drop=0.05, risk="disagreement")
    assert both.enabled_e[0] is False
    assert any(both.enabled_e[1:-1])
    assert "delta 0.05" in both.note
    for table in (good, bad):
        assert simulate(table, both).agreement >= 0.95


def test_doubt_is_what_those_who_leave_expect_to_get_wrong():
    table = make_table(50, noise=0.7)
    grid = threshold_grid([table], "max_probability", (1.0,) * 4)
    sweep = Sweeper(table, "max_probability", (1.0,) * 4, grid, "drop").sweep((0, 2))
    for t in (0, len(grid) // 2, len(grid) - 1):
        policy = Policy(threshold_e=(float(grid[t]), None, float(grid[t]), 0.0), temperature_e=(1.0,) * 4)
        exit_n = simulate(table, policy).exit_n
        sure_n = table.logits_nek.softmax(-1).amax(-1)[torch.arange(50), exit_n]
        expected = float((1 - sure_n)[exit_n < 3].sum()) / 50
        assert sweep.doubt_t[t] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("rule", ["safe", "plain"])
def test_the_dearer_a_look_the_fewer_there_are(rule):
    table = make_table(400, noise=1.0)
    policies = [choose(table, max_drop=0.05, rule=rule, look=look) for look in (0.0, 0.1, 0.9)]
    exits = [sum(policy.enabled_e) for policy in policies]
    assert exits == sorted(exits, reverse=True)
    assert exits[0] > exits[-1] == 1
    macs = [simulate(table, policy).macs for policy in policies]
    assert macs == sorted(macs)


def test_drop_weighs_what_disagreement_counts_whole():
    table = make_table(300, noise=1.5)
    weighed = simulate(table, choose(table, max_drop=0.02)).saved
    assert weighed > simulate(table, choose(table, max_drop=0.02, risk="disagreement")).saved


@pytest.mark.parametrize(("basis", "risk"), [("teacher", "disagreement"), ("teacher", "drop"), ("labels", "drop")])
def test_more_is_lost_than_allowed_no_more_often_than_delta(basis, risk):
    everybody = make_table(8000, e=4, basis=basis, noise=1.0, seed=7)
    labelled = make_table(8000, e=4, basis="labels", noise=1.0, seed=7)
    full_accuracy = float(labelled.right_ne[:, -1].double().mean())
    temperature = calibrate(everybody)
    draw = torch.Generator().manual_seed(0)
    too_much, saved = [], []
    for _ in range(100):
        sample = everybody.subset(torch.randint(8000, (300,), generator=draw))
        outcome = simulate(labelled, choose(sample, max_drop=0.03, temperature=temperature, risk=risk))
        lost = 1 - outcome.agreement if risk == "disagreement" else full_accuracy - outcome.accuracy
        too_much.append(lost > 0.03)
        saved.append(outcome.saved)
    assert np.mean(too_much) <= 0.08  # delta 0.05, and the spread of 100 draws
    assert np.mean(saved) > 0.1


def test_no_exit_is_safe_is_an_answer():
    policy = choose(make_table(100, noise=30.0), max_drop=0.01)
    assert policy.threshold_e == (None, None, None, 0.0)
    assert policy.note.startswith("no exit is safe: the best bound reached is")
    assert "no exit is safe: none saves MACs with 20 rows" in choose(make_table(10)).note
    assert choose(make_table(30, e=1)).threshold_e == (0.0,)


def test_every_exit_that_is_on_has_its_support():
    table = make_table(300, noise=0.5)
    policy = choose(table, max_drop=0.1, min_support=30)
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
    for said in ("estimated drop", "bound", "made-up rows (n=400)", "basis teacher", "rule safe", "Clopper-Pearson"):
        assert said in note
    assert "accuracy" not in note
    assert "synthesized" not in note
    assert "chosen on synthesized rows" in choose(make_table(400, synthetic=True), max_drop=0.02).note
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
    cost_p, right_p = front(table, "max_probability", (1.0,) * 4)
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
        ({"delta": 0.0}, "delta 0.0"),
        ({"rule": "bold"}, "rule 'bold'"),
        ({"look": 1.0}, "look 1.0; give a share"),
        ({"risk": "all"}, "risk 'all'"),
        ({"confidence": "margn"}, "did you mean margin"),
        ({"temperature": (1.0,)}, "1 temperatures for 4 exits"),
        ({"temperature": (1.0, math.nan, 1.0, 1.0)}, "temperature nan of exit 1"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(wishes, says):
    with pytest.raises(PolicyError, match=says):
        choose(make_table(), **wishes)


def test_tables_of_several_kinds_are_refused():
    with pytest.raises(PolicyError, match="2 tables of 2 kinds"):
        choose([make_table(), make_table(basis="labels")])
    with pytest.raises(PolicyError, match="no table to choose by"):
        choose([])


@pytest.mark.parametrize("basis", ["labels", "teacher"])
def test_a_sweep_of_a_skipping_table_counts_what_simulate_counts(basis):
    table = make_skipping(80, basis=basis)
    grid_t = threshold_grid([table], "max_probability", (1.0,) * 4)
    sweeper = Sweeper(table, "max_probability", (1.0,) * 4, grid_t, "drop")
    full_nk = table.full_nk.softmax(1)
    for on in [(), *exit_sets(3)]:
        sweep = sweeper.sweep(on)
        for t in range(0, len(grid_t), 9):
            threshold_e = (*(float(grid_t[t]) if e in on else None for e in range(3)), 0.0)
            policy = Policy(threshold_e=threshold_e, temperature_e=(1.0,) * 4, keep_g=table.keep_g)
            outcome = simulate(table, policy)
            assert math.isclose(sweep.cost_t[t], outcome.macs / 4000)
            assert sweep.right_t[t] == int(outcome.right_n.sum())
            assert sweep.lost_t[t] == int((table.full_right_n & ~outcome.right_n).sum())
            assert sweep.gained_t[t] == int((~table.full_right_n & outcome.right_n).sum())
            answer_n = table.answer_ne.gather(1, outcome.exit_n[:, None])
            weight_n = full_nk.amax(1) - full_nk.gather(1, answer_n)[:, 0]
            expected = float(weight_n.sum()) if basis == "teacher" else sweep.lost_t[t]
            assert math.isclose(sweep.weight_t[t], expected, rel_tol=1e-5, abs_tol=1e-6)
            leaving = [int((outcome.exit_n == e).sum()) for e in on]
            assert sweep.support_t[t] == min([*leaving, int((~table.skipped.whole_n).sum())])
            sure_n = table.logits_nek.softmax(-1).amax(-1).gather(1, outcome.exit_n[:, None])[:, 0]
            whole_n = (outcome.exit_n == 3) & table.skipped.whole_n
            assert math.isclose(sweep.doubt_t[t], float((1 - sure_n)[~whole_n].sum()) / 80, rel_tol=1e-5)


def test_skip_rules_are_alternatives_and_the_cheapest_safe_one_is_taken():
    plain = make_table(600, noise=5.0)  # exits that are no good
    mild, wild = (
        make_skipping(600, noise=5.0, keep=keep, rate=rate, harm=harm)
        for keep, rate, harm in ((0.2, 0.8, 0.02), (0.6, 0.2, 3.0))
    )
    picked = choose([plain, mild, wild], max_drop=0.03)
    assert picked.keep_g == (0.2, 0.2)
    assert "at 90" in picked.note or "at 9" in picked.note
    assert choose([plain, wild, mild], max_drop=0.03).keep_g == (0.2, 0.2)
    assert simulate(mild, picked).saved > 0.05
    assert choose([plain, wild], max_drop=0.01) == replace(
        Policy.never(4), basis="teacher", note=choose([plain, wild], max_drop=0.01).note
    )
    assert "neither exits nor skipping are safe" in choose([plain, wild], max_drop=0.001).note
    assert choose([plain, mild, wild], max_drop=1.0).keep_g == (0.6, 0.6)


def test_exits_and_skipping_go_together():
    plain, mild = make_table(600, noise=0.5), make_skipping(600, noise=0.5, keep=0.2, rate=0.6, harm=0.02)
    alone, both = choose(plain, max_drop=0.05), choose([plain, mild], max_drop=0.05)
    assert both.keep_g == (0.2, 0.2)
    assert any(both.enabled_e[:-1])
    assert simulate(mild, both).macs < simulate(plain, alone).macs
    budget = choose([plain, mild], budget=0.5)
    table = mild if budget.keep_g else plain
    assert simulate(table, budget).macs <= 2000


def test_skip_rules_need_the_same_rows():
    plain, skipping = make_table(50), make_skipping(50)
    with pytest.raises(PolicyError, match=r"different numbers of tables \(2 for None, 1 for \(0.5, 0.5\)\)"):
        choose([plain, plain, skipping])


def test_a_skip_that_few_rows_make_is_not_taken():
    plain = make_table(400, noise=5.0)
    rare = make_skipping(400, noise=5.0, keep=0.2, rate=0.985, harm=0.0)
    assert int((~rare.skipped.whole_n).sum()) < 20
    assert choose([plain, rare], max_drop=0.5).keep_g is None
    assert choose([plain, rare], max_drop=0.5, min_support=0).keep_g == (0.2, 0.2)
