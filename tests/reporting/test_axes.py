"""Shares right of a table, the curve of a report, and both on axes of one's own."""

from __future__ import annotations

import json
import pickle

import matplotlib as mpl
import matplotlib.pyplot
import pytest
import torch
from tables import make_skipping, make_table

import dynext as dx
from dynext.errors import PolicyError
from dynext.policy.policy import Policy

mpl.use("Agg")


def test_accuracy_is_by_labels_whatever_the_basis_and_agreement_by_the_full_net() -> None:
    for table in (make_table(50, basis="labels"), make_table(50, basis="teacher")):
        answer_ne = table.logits_nek.argmax(-1)
        right = [(answer_ne[:, e] == table.label_n).double().mean().item() for e in range(4)]
        alike = [(answer_ne[:, e] == answer_ne[:, -1]).double().mean().item() for e in range(4)]
        assert table.accuracy_e == pytest.approx(right)
        assert table.agreement_e == pytest.approx(alike)
        assert table.agreement_e[-1] == 1


def test_a_table_without_labels_has_no_accuracy_and_says_what_it_has() -> None:
    table = make_table(50, label_n=None)
    with pytest.raises(PolicyError, match=r"has no labels to be right against; .* table\.agreement_e"):
        table.accuracy_e  # noqa: B018
    assert len(table.agreement_e) == 4


def test_agreement_of_samples_that_skipped_is_with_the_static_net() -> None:
    table = make_skipping(100, harm=5.0)
    assert table.agreement_e[-1] < 1


def test_the_curve_rises_with_the_macs_and_no_point_of_the_policy_lies_above_it() -> None:
    table = make_table(300, noise=0.7)
    for max_drop in (0.02, 0.2):
        report = dx.report(table, dx.choose(table, max_drop=max_drop))
        macs, right = zip(*report.curve, strict=True)
        assert list(macs) == sorted(macs)
        assert list(right) == sorted(right)
        assert (
            max(point.right for point in report.curve if point.macs <= 1 - report.saved + 1e-9) >= report.right - 1e-9
        )
    assert report.right == pytest.approx(report.agreement)


def test_a_report_is_still_plain_data() -> None:
    report = dx.report(make_table(60), Policy.never(4))
    assert not {"table", "policy", "curve"} & json.loads(json.dumps(report.to_dict())).keys()
    assert pickle.loads(pickle.dumps(report)).curve == report.curve
    assert report == dx.report(make_table(60), Policy.never(4))


def test_axes_in_axes_out() -> None:
    table = make_table(100)
    report = dx.report(table, dx.choose(table, max_drop=0.2))
    _, ax = mpl.pyplot.subplots()
    assert dx.plot(table, ax) is ax
    assert len(ax.lines) == 2
    assert dx.plot(report, ax=ax) is ax
    star = next(line for line in ax.lines if line.get_marker() == "*")
    assert star.get_xdata() == pytest.approx([1 - report.saved])
    assert star.get_ydata() == pytest.approx([report.right])
    assert ax.get_xlabel().startswith("MACs per sample")
    mpl.pyplot.close("all")


def test_several_are_told_apart_and_new_axes_are_made() -> None:
    tables = [make_table(100, seed=seed, rows=f"samples {seed}") for seed in (0, 1)]
    reports = [dx.report(table, Policy.always(4, 1)) for table in tables]
    ax = dx.plot([*reports, make_table(100, basis="labels", rows="labelled")])
    told = [text.get_text() for text in ax.get_legend().get_texts()]
    assert told[:2] == ["samples 0", "samples 0 policy"]
    assert ax.lines[0].get_color() != ax.lines[2].get_color()
    assert ax.get_ylabel() == "accuracy or agreement with the full net"
    mpl.pyplot.close("all")


@pytest.mark.parametrize("wrong", [[], [torch.zeros(3)]])
def test_what_cannot_be_drawn_is_said(wrong: list[object]) -> None:
    with pytest.raises(PolicyError, match="give a table, a report, or a list of them"):
        dx.plot(wrong)
