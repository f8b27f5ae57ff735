from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference.simulate import simulate as slow_simulate
from tables import make_skipping, make_table
from torch.testing import assert_close

from dynext.errors import ArtifactError, PolicyError
from dynext.policy.confidence import CONFIDENCES
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable, oracle, simulate

# odd fractions of e=4 for patience, so that no threshold falls on a confidence
THRESHOLD = st.one_of(st.none(), st.floats(0.01, 0.99).map(lambda t: round(t, 2) + 0.003))


@given(st.tuples(THRESHOLD, THRESHOLD, THRESHOLD), st.sampled_from(CONFIDENCES), st.integers(0, 5))
def test_simulate_equals_row_by_row(threshold_e, measure, seed):
    table = make_table(40, seed=seed)
    policy = Policy(confidence=measure, threshold_e=(*threshold_e, 0.0), temperature_e=(2.0, 1.5, 0.8, 1.0))
    exit_n, macs_n = slow_simulate(
        table.logits_nek, table.trunk_macs_e, table.head_macs_e, measure, policy.threshold_e, policy.temperature_e
    )
    outcome = simulate(table, policy)
    assert outcome.exit_n.tolist() == exit_n.tolist()
    assert outcome.macs_n.tolist() == macs_n.tolist()
    assert_close(outcome.macs, macs_n.mean())
    assert_close(outcome.saved, 1 - macs_n.mean() / 4000)
    assert_close(np.array(outcome.share_e), np.bincount(exit_n, minlength=4) / 40)
    answer_n = table.logits_nek[torch.arange(40), torch.from_numpy(exit_n)].argmax(1)
    assert_close(outcome.agreement, float((answer_n == table.logits_nek[:, -1].argmax(1)).double().mean()))


def test_nobody_leaves_costs_the_static_net_and_everybody_leaves_the_first_exit():
    table = make_table(30, basis="labels")
    never, always = simulate(table, Policy.never(4)), simulate(table, Policy.always(4))
    assert (never.macs, never.saved, never.agreement) == (4000, 0, 1)
    assert always.share_e == (1, 0, 0, 0)
    assert always.macs_n.tolist() == [1010] * 30
    assert always.accuracy == float((table.logits_nek[:, 0].argmax(1) == table.label_n).double().mean())
    heads_only = Policy(threshold_e=(1.5, 1.5, 1.5, 0.0), temperature_e=(1.0,) * 4)
    assert simulate(table, heads_only).macs == 4060


@pytest.mark.parametrize("measure", CONFIDENCES)
def test_rows_of_nan_go_to_the_last_exit(measure):
    table = make_table(10)
    logits_nek = table.logits_nek.clone()
    logits_nek[4] = torch.nan
    logits_nek[5, 0, 0] = torch.inf
    policy = Policy(confidence=measure, threshold_e=(0.0, 0.0, 0.0, 0.0), temperature_e=(1.0,) * 4)
    outcome = simulate(make_table(10, logits_nek=logits_nek), policy)
    assert outcome.exit_n.tolist() == [0, 0, 0, 0, 3, 1, 0, 0, 0, 0]


def test_one_row_and_one_exit():
    table = make_table(1, e=1)
    outcome = simulate(table, Policy.never(1))
    assert (outcome.exit_n.tolist(), outcome.macs, outcome.saved) == ([0], 1000, 0)


def test_oracle_pays_the_cheapest_right_exit_and_its_head_only():
    answers_ne = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
    table = make_table(
        4,
        3,
        2,
        logits_nek=torch.nn.functional.one_hot(answers_ne).float(),
        label_n=torch.zeros(4).long(),
        basis="labels",
    )
    best = oracle(table)
    assert best.exit_n.tolist() == [0, 1, 2, 2]
    assert best.macs_n.tolist() == [1010, 2020, 3000, 3000]
    assert best.accuracy == 0.75


def test_milliseconds_add_up_like_macs():
    table = make_table(10, trunk_ms_e=(1.0, 2.0, 3.0, 4.0), head_ms_e=(0.5, 0.25, 0.125, 0.0))
    policy = Policy(threshold_e=(1.5, None, 0.0, 0.0), temperature_e=(1.0,) * 4)
    assert simulate(table, policy).ms == 3.625
    assert simulate(make_table(10), policy).ms is None


def test_save_and_load_round_trip(tmp_path):
    for table in (make_table(5, trunk_ms_e=(1.0, 2.0, 3.0, 4.0), synthetic=True), make_table(5, label_n=None)):
        table.save(tmp_path / "a" / "table.safetensors")
        loaded = ExitTable.load(tmp_path / "a" / "table.safetensors")
        assert vars(loaded).keys() >= set(ExitTable.__dataclass_fields__)
        for name in ExitTable.__dataclass_fields__:
            given_value, loaded_value = getattr(table, name), getattr(loaded, name)
            if isinstance(given_value, torch.Tensor):
                assert torch.equal(given_value, loaded_value)
            else:
                assert given_value == loaded_value
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["table.safetensors"]


def test_files_that_are_no_table_are_refused(tmp_path):
    path = tmp_path / "table.safetensors"
    with pytest.raises(ArtifactError, match="no exit table that can be read"):
        ExitTable.load(path)
    make_table(5).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(ArtifactError, match="no exit table that can be read"):
        ExitTable.load(path)
    path.write_bytes(whole.replace(b'\\"version\\": 1', b'\\"version\\": 9'))
    with pytest.raises(ArtifactError, match="version 9, this dynext reads 1"):
        ExitTable.load(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"logits_nek": torch.zeros(0, 4, 5), "label_n": None}, "a table of 0 samples"),
        ({"logits_nek": torch.zeros(200, 4, 5).double()}, r"\[200, 4, 5\] of torch.float64"),
        ({"logits_nek": torch.zeros(200, 4, 1)}, "logits of 1 classes"),
        ({"trunk_macs_e": (1, 2, 3)}, "logits of 4 exits but costs and names"),
        ({"trunk_macs_e": (1, 3, 2, 4)}, "must not fall"),
        ({"head_macs_e": (1, 1, 1, 1)}, "the last head cost 0"),
        ({"label_n": None, "basis": "labels"}, "give labels, or basis 'teacher'"),
        ({"label_n": torch.zeros(3).long()}, r"labels \[3\] of torch.int64 for 200 samples"),
        ({"label_n": torch.full((200,), 5)}, "labels from 5 to 5 for classes 0 to 4; number"),
    ],
)
def test_tables_that_do_not_fit_together_are_refused(changes, says):
    with pytest.raises(PolicyError, match=says):
        make_table(**changes)


def test_a_subset_keeps_the_rest():
    table = make_table(basis="labels")
    part = table.subset(torch.tensor([5, 3]))
    assert torch.equal(part.logits_nek, table.logits_nek[[5, 3]])
    assert torch.equal(part.target_n, table.label_n[[5, 3]])
    assert part.name_e == table.name_e


def test_a_skipping_row_pays_what_it_ran_and_is_compared_with_the_full_net():
    table = make_skipping(60)
    never = Policy(threshold_e=(None, None, None, 0.0), temperature_e=(1.0,) * 4, keep_g=(0.5, 0.5))
    outcome = simulate(table, never)
    skipped_n = (~table.skipped.ran_ng).sum(1)
    assert outcome.macs_n.tolist() == (4020 - 900 * skipped_n).tolist()
    same_n = table.logits_nek[:, -1].argmax(1) == table.skipped.full_nk.argmax(1)
    assert 0 < outcome.agreement == float(same_n.double().mean()) < 1
    assert outcome.right_n.tolist() == same_n.tolist()
    assert table.full_right_n.all()
    some = Policy(threshold_e=(0.7, None, 0.7, 0.0), temperature_e=(1.0,) * 4, keep_g=(0.5, 0.5))
    outcome = simulate(table, some)
    heads_e = torch.tensor([10, 10, 40, 40])
    assert outcome.macs_n.tolist() == [
        int(table.skipped.macs_ne[row, exit] + heads_e[exit]) for row, exit in enumerate(outcome.exit_n.tolist())
    ]
    assert_close(
        sum(table.macs_e(some.enabled_e)) / 4, float(table.macs_ne(some.enabled_e).double().mean()), atol=1, rtol=0
    )
    assert table.skipped.num_paths == 4
    assert table.skipped.kept_g == tuple(table.skipped.ran_ng.double().mean(0).tolist())
    best = oracle(table)
    assert best.macs <= outcome.macs
    part = table.subset(torch.tensor([5, 3]))
    assert torch.equal(part.trunk_macs_ne, table.trunk_macs_ne[[5, 3]])
    assert torch.equal(part.full_answer_n, table.full_answer_n[[5, 3]])


def test_a_table_is_for_one_skip_rule():
    table = make_skipping(10)
    for wrong in (Policy.never(4), Policy.skipping(4, 2, keep=0.4), Policy.skipping(4, 3)):
        with pytest.raises(PolicyError, match=r"the table's samples by \(0.5, 0.5\); collect a table with keep="):
            simulate(table, wrong)
    with pytest.raises(PolicyError, match=r"the table's samples by None"):
        simulate(make_table(), Policy.skipping(4, 2))
    off = Policy(threshold_e=(None, None, None, 0.0), temperature_e=(1.0,) * 4, keep_g=(None, None))
    assert simulate(make_table(), off).saved == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ran_ng": torch.ones(9, 2, dtype=torch.bool)}, r"ran_ng is \[9, 2\] of torch.bool; a table of 10 samples"),
        ({"ran_ng": torch.ones(10, 2)}, "wants .* of torch.bool"),
        ({"macs_ne": torch.ones(10, 3, dtype=torch.int64)}, r"macs_ne is \[10, 3\]"),
        ({"full_nk": torch.ones(10, 4)}, r"5 classes and 2 gates wants \[10, 5\] of torch.float32"),
    ],
)
def test_what_was_skipped_must_fit_the_table(changes, says):
    table = make_skipping(10)
    with pytest.raises(PolicyError, match=says):
        replace(table, skipped=replace(table.skipped, **changes))


def test_a_skipping_table_round_trips(tmp_path):
    table = make_skipping(7)
    table.save(tmp_path / "table.safetensors")
    loaded = ExitTable.load(tmp_path / "table.safetensors")
    assert loaded.keep_g == (0.5, 0.5)
    for name in ("ran_ng", "macs_ne", "full_nk"):
        assert torch.equal(getattr(loaded.skipped, name), getattr(table.skipped, name))
    assert simulate(loaded, Policy.skipping(4, 2)).macs == simulate(table, Policy.skipping(4, 2)).macs


def test_a_policy_for_another_net_is_refused():
    with pytest.raises(PolicyError, match="for 3 exits, this net or table has 4"):
        simulate(make_table(), Policy.never(3))
