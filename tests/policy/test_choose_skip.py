"""Thresholds and skip rules chosen together."""

import math
from dataclasses import replace

import pytest
from tables import make_skipping, make_table

from dynext.errors import PolicyError
from dynext.policy.choose import choose
from dynext.policy.policy import Policy
from dynext.policy.rule import SafeRule
from dynext.policy.sweep import Sweeper, exit_sets, threshold_grid
from dynext.policy.table import simulate


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
    assert choose([plain, rare], max_drop=0.5, rule=SafeRule(min_support=0)).keep_g == (0.2, 0.2)
