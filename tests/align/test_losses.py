"""Each term against its paper's formula, and against lightly called directly."""

from functools import partial
from typing import get_args

import lightly.loss
import pytest
import torch
from reference import alignment as slow
from torch import Tensor

from dynext.align.losses import TO_FEATURES, WEIGHTS, Loss, self_contrastive, term_of
from dynext.errors import FitError

Z = torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
"""Projections ``[e b d]``, the last exit's at the end."""
close = partial(pytest.approx, rel=1e-6)
LIGHTLY = {
    "cosine": lightly.loss.NegativeCosineSimilarity(),
    "ntxent": lightly.loss.NTXentLoss(temperature=0.2),
    "barlow": lightly.loss.BarlowTwinsLoss(),
    "vicreg": lightly.loss.VICRegLoss(),
}
SLOW = {
    "cosine": slow.negative_cosine,
    "ntxent": lambda a, b: slow.self_contrastive(torch.stack([torch.tensor(a), torch.tensor(b)]).numpy(), 0.2),
    "barlow": slow.barlow,
    "vicreg": slow.vicreg,
    "l2": slow.l2,
}


def value(loss: str, z: Tensor = Z, y: Tensor | None = None) -> float:
    return float(term_of(loss, temperature=0.2)(list(z[:-1]), z[-1], y))


@pytest.mark.parametrize("loss", SLOW)
def test_a_term_is_the_papers_formula_summed_over_early_exits(loss: str) -> None:
    expected = sum(SLOW[loss](early.numpy(), Z[-1].numpy()) for early in Z[:-1])
    assert value(loss) == close(expected)


@pytest.mark.parametrize("loss", LIGHTLY)
def test_a_term_is_lightlys(loss: str) -> None:
    expected = sum(float(LIGHTLY[loss](early.clone(), Z[-1].clone())) for early in Z[:-1])
    assert value(loss) == close(expected)


def test_every_loss_has_a_formula_and_a_weight() -> None:
    assert {*SLOW, "selfcon"} == set(get_args(Loss)) == set(WEIGHTS)


def test_self_contrastive_takes_all_exits_and_labels() -> None:
    y = torch.tensor([0, 1, 0, 2, 1, 0, 3])
    assert value("selfcon") == close(slow.self_contrastive(Z.numpy(), 0.2))
    assert value("selfcon", y=y) == close(slow.self_contrastive(Z.numpy(), 0.2, y.numpy()))
    assert value("selfcon", y=y) != pytest.approx(value("selfcon"))


def test_of_two_exits_self_contrastive_is_ntxent() -> None:
    expected = float(lightly.loss.NTXentLoss(temperature=0.1)(Z[0], Z[1]))
    assert float(self_contrastive(Z[:2], 0.1)) == close(expected)


@pytest.mark.parametrize("loss", get_args(Loss))
def test_the_gradient_stops_where_the_paper_stops_it(loss: str) -> None:
    early, final = Z[:2].clone().requires_grad_(True), Z[-1].clone().requires_grad_(True)
    term_of(loss)(list(early), final, None).backward()
    assert early.grad is not None
    assert early.grad.abs().sum() > 0
    assert (final.grad is None) == (loss in TO_FEATURES)


@pytest.mark.parametrize("loss", get_args(Loss))
def test_two_samples_are_enough_and_one_is_not(loss: str) -> None:
    assert torch.isfinite(torch.tensor(value(loss, Z[:, :2])))
    with pytest.raises(FitError, match=r"a batch of 1; alignment compares samples .* at least 2"):
        value(loss, Z[:, :1])


def test_what_is_no_loss_is_refused() -> None:
    with pytest.raises(FitError, match=r"loss='simclr', .* give one of cosine, ntxent"):
        term_of("simclr")
    with pytest.raises(FitError, match=r"temperature=0"):
        term_of("ntxent", temperature=0)
