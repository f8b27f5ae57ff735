import math

import pytest
import torch
from reference import calibration as slow
from tables import make_table
from torch.testing import assert_close

from dynext.errors import PolicyError
from dynext.policy.calibrate import calibrate, ece, reliability
from dynext.seeding import generator


@pytest.mark.parametrize("basis", ["labels", "teacher"])
def test_temperatures_and_figures_equal_the_slow_ones(basis):
    table = make_table(80, e=3, basis=basis, noise=2.0)
    calibration = calibrate(table)
    for e in range(3 if basis == "labels" else 2):
        logits_nk, target_n = table.logits_nek[:, e].numpy(), table.target_n.numpy()
        expected = slow.best_temperature(logits_nk, target_n)
        assert_close(calibration.temperature_e[e], expected, rtol=1e-5, atol=0)
        assert_close(calibration.nll_before_e[e], slow.nll(logits_nk, target_n, 1.0), rtol=1e-6, atol=1e-8)
        assert_close(calibration.nll_after_e[e], slow.nll(logits_nk, target_n, expected), rtol=1e-6, atol=1e-8)
        assert_close(calibration.ece_before_e[e], slow.ece(logits_nk, target_n, 15), rtol=1e-5, atol=1e-6)
        assert_close(calibration.ece_after_e[e], slow.ece(logits_nk / expected, target_n, 15), rtol=1e-4, atol=1e-5)


def test_a_known_temperature_is_recovered():
    draw = generator(0)
    true_nk = 2 * torch.randn(4000, 6, generator=draw)
    label_n = torch.multinomial(true_nk.softmax(1), 1, generator=draw)[:, 0]
    best = calibrate(make_table(4000, 1, 6, logits_nek=true_nk[:, None], label_n=label_n, basis="labels"))
    scaled = calibrate(make_table(4000, 1, 6, logits_nek=1.5 * true_nk[:, None], label_n=label_n, basis="labels"))
    assert abs(best.temperature_e[0] - 1) < 0.05
    assert abs(scaled.temperature_e[0] / best.temperature_e[0] - 1.5) < 1e-3
    assert scaled.ece_after_e[0] < 0.03 < scaled.ece_before_e[0]


def test_the_full_net_is_not_scaled_against_itself():
    calibration = calibrate(make_table(60))
    assert calibration.temperature_e[-1] == 1
    assert calibration.nll_before_e[-1] == calibration.nll_after_e[-1]


def test_the_loss_never_rises():
    for seed in range(5):
        calibration = calibrate(make_table(30, basis="labels", seed=seed, noise=3.0))
        assert all(
            after <= before for before, after in zip(calibration.nll_before_e, calibration.nll_after_e, strict=True)
        )


def test_an_exit_that_is_always_right_stops_at_the_bound():
    label_n = torch.arange(10) % 5
    logits_nek = torch.nn.functional.one_hot(label_n, 5).float()[:, None]
    always_wrong = -logits_nek
    for logits, bound in ((logits_nek, 0.05), (always_wrong, 20.0)):
        calibration = calibrate(make_table(10, 1, logits_nek=logits, label_n=label_n, basis="labels"))
        assert_close(calibration.temperature_e[0], bound, rtol=1e-6, atol=0)


def test_rows_that_are_not_finite_do_not_count():
    table = make_table(50, basis="labels")
    spoilt = torch.zeros(2, 4, 5)
    spoilt[0, :, 1], spoilt[1] = torch.inf, torch.nan
    logits_nek = torch.cat([table.logits_nek, spoilt])
    worse = make_table(
        52, logits_nek=logits_nek, label_n=torch.cat([table.label_n, torch.zeros(2).long()]), basis="labels"
    )
    assert calibrate(worse) == calibrate(table)
    only_nan = make_table(3, logits_nek=torch.full((3, 4, 5), torch.nan), basis="labels")
    assert calibrate(only_nan).temperature_e == (1.0,) * 4
    assert math.isnan(ece(only_nan, 0, 1.0))


def test_reliability_adds_up_to_the_calibration_error():
    table = make_table(150, basis="labels", noise=2.0)
    diagram = reliability(table, 1.3, 1)
    assert diagram.count_w.sum() == 150
    gap_w = (diagram.right_w - diagram.confidence_w).abs().nan_to_num(0) * diagram.count_w / 150
    assert_close(float(gap_w.sum()), ece(table, 1, 1.3), rtol=1e-5, atol=1e-6)
    assert (diagram.right_w[diagram.count_w == 0]).isnan().all()
    with pytest.raises(PolicyError, match="exit 4 of a table with 4; give 0 to 3, or -1"):
        reliability(table, 1.0, 4)


def test_a_temperature_at_a_bound_is_told_with_its_exit_and_what_to_do(caplog):
    label_n = torch.arange(10) % 5
    right_nk = torch.nn.functional.one_hot(label_n, 5).float()
    logits_nek = torch.stack([right_nk, -right_nk, 2 * right_nk + 1.9 * right_nk.roll(1, 0)], dim=1)
    logits_nek[:2, 2] = -9 * right_nk[:2]
    table = make_table(10, 3, logits_nek=logits_nek, label_n=label_n, basis="labels")
    with caplog.at_level("WARNING", logger="dynext"):
        temperature_e = calibrate(table).temperature_e
    told = [record.getMessage() for record in caplog.records]
    at = [e for e in range(3) if temperature_e[e] in (0.05, 20.0)]
    assert {0, 1} <= set(at)
    assert len(told) == len(at)
    assert "exit 0 (layer0) on made-up samples (n=10) ended at its lower bound 0.05: it is right on 100.0%" in told[0]
    assert "calibrate on more samples" in told[0]
    assert "exit 1 (layer1)" in told[1]
    assert "upper bound 20: it is right on 0.0% of them" in told[1]
    assert "train it longer, scale its logits down" in told[1]


def test_a_temperature_inside_is_not_worth_a_word(caplog):
    with caplog.at_level("WARNING", logger="dynext"):
        calibrate(make_table(200, basis="labels", noise=2.0))
    assert not caplog.records


def test_logits_too_small_for_what_they_know_are_told_as_that(caplog):
    label_n = torch.arange(100) % 5
    said_n = torch.where(torch.arange(100) % 10 == 0, (label_n + 1) % 5, label_n)
    logits_nek = torch.stack([1e-3 * torch.nn.functional.one_hot(said_n, 5).float()] * 2, dim=1)
    with caplog.at_level("WARNING", logger="dynext"):
        calibrate(make_table(100, 2, logits_nek=logits_nek, label_n=label_n, basis="labels"))
    told = caplog.records[0].getMessage()
    assert "ended at its lower bound 0.05: it is right on 90.0% of them" in told
    assert "far smaller than that deserves" in told
    assert "train it longer" in told
