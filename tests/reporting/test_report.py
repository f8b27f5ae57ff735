import json

import pytest
import torch
from reference import bounds as slow
from tables import make_skipping, make_table

from dynext.policy.calibrate import calibrate
from dynext.policy.choose import choose
from dynext.policy.policy import Policy
from dynext.policy.table import simulate
from dynext.reporting.page import write_page
from dynext.reporting.report import report


def test_figures_are_those_of_simulate():
    table = make_table(300, basis="labels")
    policy = choose(table, max_drop=0.05, temperature=calibrate(table))
    outcome, summary = simulate(table, policy), report(table, policy)
    assert (summary.saved, summary.accuracy, summary.agreement) == (outcome.saved, outcome.accuracy, outcome.agreement)
    assert summary.static_accuracy == float(table.right_ne[:, -1].double().mean())
    assert tuple(line.leaving for line in summary.exits) == outcome.share_e
    for line in summary.exits:
        here_n = outcome.exit_n == line.exit
        expected = float(outcome.right_n[here_n].double().mean()) if here_n.any() else None
        assert line.right_of_leaving == expected
        assert line.macs == table.macs_e(policy.enabled_e)[line.exit]


def test_bounds_are_those_that_choose_goes_by():
    table = make_table(400, noise=1.5)
    policy = choose(table, max_drop=0.05, temperature=calibrate(table))
    summary = report(table, policy)
    agree = int(simulate(table, policy).right_n.sum())
    assert summary.agreement_at_least == pytest.approx(slow.lower_bound(agree, 400, 0.05), abs=1e-6)
    assert f"drop {summary.drop:.2%}, bound {summary.drop_at_most:.2%}" in policy.note
    assert 0 < summary.drop < summary.drop_at_most <= 0.05


def test_the_static_net_loses_nothing_and_labels_need_no_estimate():
    static = report(make_table(), Policy.never(4))
    assert (static.drop, static.drop_at_most, static.agreement) == (0.0, 0.0, 1.0)
    labelled = report(make_table(basis="labels"), Policy.never(4))
    assert labelled.drop is labelled.drop_at_most is None


def test_text_says_what_is_what():
    table = make_table(300, basis="labels")
    text = str(report(table, choose(table, max_drop=0.05)))
    for words in (
        "accuracy (basis: labels)",
        "layer0",
        "output",
        "right, all",
        "Accuracy",
        "saved",
        "oracle",
        "Policy: ",
    ):
        assert words in text


def test_an_exit_that_is_off_is_shown_as_off():
    table = make_table(50)
    lines = str(report(table, Policy.always(4, 1))).splitlines()
    assert sum(" off " in line for line in lines) == 2
    assert sum(" all " in line for line in lines) == 3  # the exit, the last one, and the legend's or title's words


@pytest.mark.parametrize(
    ("synthetic", "says"), [(False, "full net (basis: teacher)"), (True, "on synthesized samples")]
)
def test_agreement_is_never_called_accuracy(synthetic, says):
    table = make_table(300, synthetic=synthetic)
    text = str(report(table, choose(table, max_drop=0.05)))
    assert says in text
    assert "accuracy" not in text.lower()


def test_synthesized_labels_are_not_accuracy_either():
    table = make_table(100, synthetic=True, basis="labels")
    summary = report(table, choose(table, max_drop=0.05))
    assert summary.accuracy is None
    assert "accuracy" not in str(summary).lower()


def test_json_has_no_nan():
    logits_nek = make_table(20).logits_nek.clone()
    logits_nek[:, 1] = torch.nan
    summary = report(make_table(20, logits_nek=logits_nek), Policy.never(4))
    plain = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert [line["ece"] is None for line in plain["exits"]] == [False, True, False, True]  # NaN, and the full net
    assert plain["measure"] == "agreement with the full net"


def test_measured_milliseconds_are_told():
    table = make_table(50, trunk_ms_e=(1.0, 2.0, 3.0, 4.0), head_ms_e=(0.5, 0.5, 0.5, 0.0))
    assert "1.50 ms against 4.00 ms" in str(report(table, Policy.always(4)))


def test_heads_that_cost_more_than_they_save_are_told():
    text = str(report(make_table(50), Policy(threshold_e=(1.5, 1.5, 1.5, 0.0), temperature_e=(1.0,) * 4)))
    assert "1.5% more MACs spent" in text


@pytest.mark.parametrize("basis", ["labels", "teacher"])
def test_what_is_skipped_is_told_and_weighed(basis):
    table = make_skipping(300, basis=basis)
    summary = report(table, Policy.skipping(4, 2))
    assert summary.kept == table.skipped.kept_g
    assert summary.paths == 4
    text = str(summary)
    assert f"Of 2 stages that may be skipped a sample runs {sum(summary.kept):.1f} on its way" in text
    assert "4 different paths" in text
    assert json.loads(json.dumps(summary.to_dict()))["kept"] == list(summary.kept)
    if basis == "teacher":
        assert 0 < summary.drop < summary.drop_at_most
        assert summary.agreement < 1
        assert summary.exits[-1].ece is not None, "an exit behind skipped stages is not judged by itself"
    else:
        assert summary.static_accuracy == float((table.full_nk.argmax(1) == table.label_n).double().mean())
        assert summary.accuracy < summary.static_accuracy
    assert report(make_table(), Policy.never(4)).kept is None
    assert "skipped" not in str(report(make_table(), Policy.never(4)))


def test_a_page_shows_a_skipping_net(tmp_path):
    table = make_skipping(60)
    policy = Policy.skipping(4, 2)
    page = write_page(tmp_path / "page.html", title="net", reports=[("rows", table, policy, report(table, policy))])
    assert "<svg" in page.read_text()
