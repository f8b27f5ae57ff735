"""The terms equal the papers' formulas, and no gradient goes astray."""

import numpy as np
import pytest
import torch
from reference import synthesis as slow
from torch.testing import assert_close

from dynext.seeding import generator
from dynext.zeroshot.synth.terms import adversarial, competition, jensen_shannon, mode_seeking


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=generator(seed), dtype=torch.double)


def test_divergence_is_the_formula_and_bounded() -> None:
    p, q = logits(7, 5).softmax(-1), logits(7, 5, seed=1).softmax(-1)
    wanted = [slow.jensen_shannon(a, b) for a, b in zip(p.numpy(), q.numpy(), strict=True)]
    assert_close(jensen_shannon(p, q).tolist(), wanted)
    assert_close(jensen_shannon(p, q), jensen_shannon(q, p))
    one, other = torch.eye(2, dtype=torch.double)[None, 0], torch.eye(2, dtype=torch.double)[None, 1]
    assert float(jensen_shannon(one, other)) == pytest.approx(np.log(2))
    assert float(jensen_shannon(one, one)) == 0


def test_competition_is_the_mean_over_exits() -> None:
    exits, answer = logits(6, 3, 4), logits(6, 4, seed=1)
    assert_close(competition(exits, answer).numpy(), slow.competition(exits.numpy(), answer.numpy()))


def test_competition_of_sure_answers_has_a_finite_slope() -> None:
    exits = torch.tensor([[[400.0, 0.0]]], requires_grad=True)
    answer = torch.tensor([[0.0, 400.0]], requires_grad=True)
    slopes = torch.autograd.grad(competition(exits, answer).sum(), [exits, answer])
    assert all(torch.isfinite(slope).all() for slope in slopes)


def test_adversarial_counts_where_both_agree() -> None:
    exits, answer = logits(40, 2, 3), logits(40, 3, seed=1)
    agree = exits.argmax(-1) == answer.argmax(-1)[:, None]
    assert 10 < int(agree.sum()) < 70
    assert_close(adversarial(exits, answer).item(), slow.adversarial(exits.numpy(), answer.numpy()))
    exits.requires_grad_()
    adversarial(exits, answer).backward()
    assert bool((exits.grad.abs().sum(-1) > 0).eq(agree).all())


def test_mode_seeking_is_the_published_ratio() -> None:
    x, z = logits(2, 5, 3, 4, 4), logits(2, 5, 6, seed=1)
    wanted = slow.mode_seeking(*x.numpy(), *z.numpy())
    assert_close(mode_seeking(*x, *z).item(), wanted)
    assert mode_seeking(x[0], x[0], *z).item() > 1e4
