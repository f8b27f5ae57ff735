"""An aligning term of one's own stands wherever a loss's name does."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dynext as dx
from dynext.errors import FitError

SHORT = {"steps": 6, "batch_size": 32, "progress": False}


def squared(early_e: Sequence[Tensor], final_bd: Tensor, y_b: Tensor | None) -> Tensor:
    """Squared distance of directions, no gradient through the last exit."""
    target = F.normalize(final_bd.detach(), dim=-1)
    return torch.stack([(F.normalize(z, dim=-1) - target).square().sum(-1).mean() for z in early_e]).sum()


def test_a_term_of_ones_own_aligns(net: dx.DynamicNet, samples: dx.data.Samples) -> None:
    aligned = dx.align.align_exits(net, samples, term=squared, **{**SHORT, "steps": 30})
    assert f"aligned by {__name__}:squared, code" in str(aligned)
    assert aligned.weight == 1.0
    assert aligned.snapshots[-1].alignment < aligned.snapshots[0].alignment
    weighed = dx.align.align_exits(net, samples, term=dx.align.AlignmentTerm(loss=squared, weight=0.0), **SHORT)
    assert weighed.weight == 0.0


def test_another_term_is_another_run(net: dx.DynamicNet, samples: dx.data.Samples, tmp_path: object) -> None:
    saved = {**SHORT, "checkpoint": tmp_path / "run.ckpt"}  # type: ignore[operator]
    dx.align.align_exits(net, samples, term=squared, **saved)
    with pytest.raises(FitError, match="loss was .*squared"):
        dx.align.align_exits(net, samples, term=lambda early, final, y: early[0].square().mean(), **saved)


@pytest.mark.parametrize(
    ("term", "said"),
    [
        (lambda early, final, y: early[0], r"gave a tensor \(32, 128\); give one number with a gradient"),
        (lambda early, final, y: early[0].detach().sum(), "give one number with a gradient"),
        (lambda early, final, y: 1.0, "gave a float"),
        ("cosin", "loss='cosin'.*or a function"),
    ],
)
def test_what_is_no_term_is_refused(net: dx.DynamicNet, samples: dx.data.Samples, term: object, said: str) -> None:
    with pytest.raises(FitError, match=said):
        dx.align.align_exits(net, samples, term=term, **SHORT)
