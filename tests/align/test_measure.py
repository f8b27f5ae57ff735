"""How alike exits see, and accuracy on classes held out."""

import pytest
import torch
from reference import alignment as slow

import dynext as dx
from dynext.align.measure import HeldOut
from dynext.errors import SourceError

A = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
B = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + A[:, :3]


def test_cka_is_the_papers() -> None:
    assert dx.align.cka(A, B) == pytest.approx(slow.cka(A.numpy(), B.numpy()))
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    assert dx.align.cka(A, 3 * A @ rotation + 7) == pytest.approx(1)
    assert dx.align.cka(A, torch.ones(20, 4)) == 0.0
    with pytest.raises(SourceError, match="20 and 19 samples"):
        dx.align.cka(A, B[1:])


def test_held_out_classes_are_measured_among_themselves_and_among_all() -> None:
    #                  right everywhere        right among the held out  wrong                  a seen class
    logits_nk = [[0.0, 0.0, 9.0, 1.0], [5.0, 0.0, 1.0, 2.0], [0.0, 0.0, 3.0, 2.0], [1.0, 0.0, 0.0, 0.0]]
    label_n = torch.tensor([2, 3, 3, 0])
    accuracy = dx.align.held_out_accuracy(torch.tensor(logits_nk)[:, None], label_n, [3, 2])
    assert accuracy.zero_shot_e == (pytest.approx(2 / 3),)
    assert accuracy.unseen_e == (pytest.approx(1 / 3),)
    assert accuracy.seen_e == (1.0,)
    assert accuracy.harmonic_e == (pytest.approx(0.5),)
    assert HeldOut(zero_shot_e=(0.0,), unseen_e=(0.0,), seen_e=(0.0,)).harmonic_e == (0.0,)
    with pytest.raises(SourceError, match=r"0 of 4 samples are of the held-out classes \[1\]"):
        dx.align.held_out_accuracy(torch.tensor(logits_nk)[:, None], label_n, [1])
