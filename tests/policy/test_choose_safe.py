"""The safe rule: what it bounds, in which order it tests, and how often it breaks its word."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import bounds as slow
from tables import make_table

from dynext.policy.calibrate import calibrate
from dynext.policy.candidates import Scorer, cautious_path
from dynext.policy.choose import choose
from dynext.policy.policy import Policy
from dynext.policy.rule import PlainRule, SafeRule
from dynext.policy.sweep import Sweep, Sweeper, exit_sets, threshold_grid
from dynext.policy.table import simulate


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
        heads_t=none_t,
        support_t=none_t,
        right_t=none_t,
        lost_t=lost_t,
        gained_t=np.array([0.0, 1.0, 40.0]),
        weight_t=lost_t * weight,
        square_t=lost_t * weight**2,
        usual_weight=weight,
        usual_square=weight**2,
        doubt_t=none_t,
        num_rows=100,
    )
    lost = [1 - slow.lower_bound(100 - hit, 100, 0.05) for hit in (0, 3, 40)]
    expected = [weight * lost[0], weight * lost[1] - 0.01, max(weight * lost[2] - 0.4, 0)]
    np.testing.assert_allclose(sweep.drop_bound_t(0.05), expected, rtol=1e-6)


def test_the_plain_rule_takes_what_was_observed_and_the_safe_rule_less():
    table = make_table(300, noise=1.5)
    plain = simulate(table, choose(table, max_drop=0.03, rule=PlainRule(risk="disagreement")))
    safe = simulate(table, choose(table, max_drop=0.03, rule=SafeRule(risk="disagreement")))
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
    scorer = Scorer(rule=SafeRule(), overhead=0.0)
    paths = []
    for labelled in (table, other):
        grid = threshold_grid([labelled], "max_probability", (1.0,) * 4)
        sweeper = Sweeper(labelled, "max_probability", (1.0,) * 4, grid, "drop")
        candidates = {on: scorer.score(on, [sweeper.sweep(on)]) for on in exit_sets(3)}
        path = cautious_path([*candidates.values()])
        paths.append([(candidate.on, candidate.t) for candidate in path])
        cost = [candidate.cost for candidate in path]
        doubt = [candidates[candidate.on].doubt_t[candidate.t] for candidate in path]
        assert cost == sorted(cost, reverse=True)
        assert doubt == sorted(doubt)
        assert len({on for on, _ in paths[-1]}) > 1
    assert paths[0] == paths[1]


def test_an_exit_that_is_wrong_and_sure_of_it_does_not_stop_those_behind_it():
    good, other = make_table(600, seed=1), make_table(600, seed=2)
    logits_nek = other.logits_nek.clone()
    logits_nek[:, 0] = logits_nek[:, 0].roll(1, dims=1) * 9  # another class, and no doubt at all
    bad = replace(other, logits_nek=logits_nek)
    assert not any(choose(bad, max_drop=0.05, rule=SafeRule(risk="disagreement")).enabled_e[:-1])
    both = choose([good, bad], max_drop=0.05, rule=SafeRule(risk="disagreement"))
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
        outcome = simulate(labelled, choose(sample, max_drop=0.03, temperature=temperature, rule=SafeRule(risk=risk)))
        lost = 1 - outcome.agreement if risk == "disagreement" else full_accuracy - outcome.accuracy
        too_much.append(lost > 0.03)
        saved.append(outcome.saved)
    assert np.mean(too_much) <= 0.08  # delta 0.05, and the spread of 100 draws
    assert np.mean(saved) > 0.1
