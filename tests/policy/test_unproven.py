"""Where nothing is proven safe: what the note says, and whether what it says would help does help."""

from __future__ import annotations

import math
import re

import pytest
import torch
from tables import make_skipping, make_table

from dynext.errors import PolicyError
from dynext.policy.choose import choose
from dynext.policy.limits import Limits
from dynext.policy.policy import Policy
from dynext.policy.rule import SafeRule
from dynext.policy.table import ExitTable, simulate


def one_exit(n: int, *, wrong: int = 0, **changes: object) -> ExitTable:
    """An exit that half of the samples leave at, of which ``wrong`` get the wrong answer."""
    sure_n = torch.linspace(6.0, 0.5, n)
    right_n = torch.ones(n)
    right_n[:wrong] = -1  # the surest
    logits_ne = torch.stack([sure_n * right_n, torch.full((n,), 9.0)], 1)
    logits_nek = torch.stack([logits_ne, -logits_ne], 2)
    labels = {"label_n": torch.zeros(n).long(), "basis": "labels", "rows": "samples"}
    return make_table(n, 2, 2, logits_nek=logits_nek, **{**labels, **changes})


def figure(pattern: str, note: str) -> float:
    told = re.search(pattern, note)
    assert told, note
    return float(told[1].replace(",", ""))


def test_none_wrong_in_200_is_bounded_by_a_point_and_a_half_and_299_would_do():
    note = choose(one_exit(200)).note
    assert note.startswith("no exit is safe within 1.00%: the first test, the most cautious use of exit 0, has none of")
    assert figure(r"bounds the loss by ([\d.]+)%", note) == pytest.approx(100 * (1 - 0.05 ** (1 / 200)), abs=0.01)
    needed = math.ceil(math.log(0.05) / math.log(0.99))
    assert figure(r"([\d,]+) such samples would be enough", note) == needed
    assert not choose(one_exit(needed - 1)).enabled_e[0]
    assert choose(one_exit(needed)).enabled_e[0]


@pytest.mark.parametrize(
    ("rule", "table"),
    [
        ("safe", one_exit(200)),
        ("safe", one_exit(200, wrong=3)),
        ("safe", make_table(200, noise=2.5)),
        ("safe", make_skipping()),
        ("plain", one_exit(200, wrong=3)),
    ],
)
def test_the_loss_that_would_pass_passes_saves_what_is_said_and_no_less_would(rule, table):
    tables = [table] if table.skipped is None else [make_table(), table]
    note = choose(tables, max_drop=1e-6, rule=rule).note
    asked = figure(r"max_drop=([\d.]+) would pass", note)
    policy = choose(tables, max_drop=asked, rule=rule)
    here = next(t for t in tables if t.keep_g == policy.skip_rule)
    assert figure(r"save ([\d.]+)%", note) == pytest.approx(100 * simulate(here, policy).saved, abs=0.06)
    assert choose(tables, max_drop=asked - 2e-4, rule=rule).enabled_e[:-1] == (False,) * (table.num_exits - 1)


def test_a_bound_below_what_was_asked_is_told_as_one_that_is_not_tested_any_more():
    sure_n = torch.linspace(6.0, 0.5, 400)
    right_n, full_right_n = torch.ones(400), torch.ones(400)
    right_n[:20] = -1  # the surest answers are wrong
    full_right_n[100:200] = -1  # and later ones make more than good for them
    logits_ne = torch.stack([sure_n * right_n, full_right_n], 1)
    table = make_table(
        400, 2, 2, logits_nek=torch.stack([logits_ne, -logits_ne], 2), label_n=torch.zeros(400).long(), basis="labels"
    )
    note = choose(table).note
    assert "20 of 400 samples lost" in note
    assert "ends the search, although one further down reached 0.00%" in note
    assert "no number of such samples would do" in note


def test_several_paths_say_the_share_of_delta_that_each_is_tested_at():
    note = choose([make_table(200, seed=1), make_table(200, seed=2)], max_drop=1e-4).note
    assert "(delta 0.0167)" in note


def test_what_is_kept_back_is_asked_for_too():
    limits = Limits.kept_back(budget=None, max_drop=0.01, share=0.75, spent=0.001)
    assert limits.max_drop == pytest.approx(0.0065)
    asked = limits.to_ask(0.0149)
    assert asked == pytest.approx(0.0213)  # (.0149 + .001) / .75 = .0212
    assert limits.allowed(asked) >= 0.0149
    assert "25% of what was asked for is kept back, 0.10% is lost already" in limits.in_words()
    assert Limits(budget=None, max_drop=0.0, static_ms=None, share=0.0).to_ask(0.1) is None


def test_least_takes_the_safest_policy_that_saves_and_says_that_it_is_not_proven():
    table = one_exit(200)
    policy = choose(table, when_unsafe="least")
    assert policy.note.startswith(
        "not proven within 1.00%, taken as the least that may be lost: drop 0.00%, bound 1.49%"
    )
    assert simulate(table, policy).saved > 0
    assert policy.threshold_e == choose(table, max_drop=0.015).threshold_e


def test_least_changes_nothing_where_something_is_proven_or_nothing_saves():
    table = make_table(1000, noise=0.6)
    assert choose(table, max_drop=0.02, when_unsafe="least") == choose(table, max_drop=0.02)
    dear = make_table(200, head_macs_e=(9000, 9000, 9000, 0))
    for when_unsafe in ("static", "least"):
        policy = choose(dear, when_unsafe=when_unsafe)
        assert policy.threshold_e == Policy.never(4).threshold_e
        assert "no exit is safe: none saves MACs" in policy.note


def test_least_takes_an_exit_that_too_few_samples_leave_at_for_any_test():
    table = one_exit(10)
    assert choose(table).threshold_e[0] is None
    policy = choose(table, when_unsafe="least")
    assert policy.threshold_e[0] is not None
    assert simulate(table, policy).saved > 0
    assert "none saves MACs with 20 samples leaving" in policy.note
    assert "would pass" not in policy.note
    assert choose(table, max_drop=0.5, rule=SafeRule(min_support=1)).threshold_e[0] is not None


def test_another_wish_is_refused():
    with pytest.raises(PolicyError, match="when_unsafe='guess'; give 'static' or 'least'"):
        choose(one_exit(50), when_unsafe="guess")
