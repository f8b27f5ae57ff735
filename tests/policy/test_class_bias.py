"""Class biases: the optimum of what they minimize, and what they leave alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import calibration as slow
from tables import make_table
from torch.testing import assert_close

from dynext.errors import PolicyError
from dynext.policy.class_bias import class_biases
from dynext.seeding import generator


@pytest.mark.parametrize("basis", ["labels", "teacher"])
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_they_equal_the_slow_ones(basis: str, spread: float) -> None:
    table = make_table(40, e=3, k=4, basis=basis, noise=2.0)
    table = replace(table, logits_nek=0.3 * table.logits_nek)  # gradient descent wants small steps for large logits
    bias_ek = class_biases(table, spread=spread)
    for e in range(2):
        expected = slow.class_biases(table.logits_nek[:, e].double().numpy(), table.target_n.numpy(), spread)
        np.testing.assert_allclose(bias_ek[e].numpy(), expected, atol=1e-4)
    assert (bias_ek[-1] == 0).all()


def test_a_known_lopsidedness_is_recovered() -> None:
    draw = generator(0)
    true_nk = 2 * torch.randn(6000, 5, generator=draw)
    label_n = torch.multinomial(true_nk.softmax(1), 1, generator=draw)[:, 0]
    shift_k = torch.tensor([1.0, -0.5, 0.0, 0.5, -1.0])
    logits_nek = torch.stack([true_nk - shift_k, true_nk], dim=1)
    bias_ek = class_biases(make_table(6000, 2, 5, logits_nek=logits_nek, label_n=label_n, basis="labels"))
    assert_close(bias_ek[0], shift_k.double(), atol=0.15, rtol=0)


def test_a_class_that_no_row_has_stays_within_the_prior() -> None:
    table = make_table(60, e=2, k=4, basis="labels")
    label_n = table.target_n % 3
    bias_ek = class_biases(make_table(60, 2, 4, logits_nek=table.logits_nek, label_n=label_n, basis="labels"))
    assert bias_ek.isfinite().all()
    assert bias_ek[0, 3] < 0


def test_an_exit_that_is_always_right_gets_finite_biases() -> None:
    label_n = torch.arange(20) % 4
    logits_nek = 30 * torch.nn.functional.one_hot(label_n, 4).float()[:, None].repeat(1, 2, 1)
    bias_ek = class_biases(make_table(20, 2, 4, logits_nek=logits_nek, label_n=label_n, basis="labels"))
    assert_close(bias_ek, torch.zeros(2, 4, dtype=torch.double), atol=1e-3, rtol=0)


def test_rows_that_are_not_finite_do_not_count() -> None:
    table = make_table(50, e=2, k=4, basis="labels", noise=2.0)
    broken = table.logits_nek.clone()
    broken[7, 0, 1] = torch.nan
    rest = torch.arange(50) != 7
    bias_ek = class_biases(make_table(50, 2, 4, logits_nek=broken, label_n=table.target_n, basis="labels"))
    assert_close(bias_ek, class_biases(table.subset(rest.nonzero()[:, 0])))
    none = make_table(50, 2, 4, logits_nek=torch.full_like(broken, torch.nan), label_n=table.target_n, basis="labels")
    assert (class_biases(none) == 0).all()


def test_a_spread_that_is_none_is_refused() -> None:
    with pytest.raises(PolicyError, match="spread=0; give a positive deviation"):
        class_biases(make_table(10, e=2), spread=0)
