"""Losses as pure functions of tensors, one per published formula.

Shapes: b rows, e exits, k classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def distillation(student_bk: Tensor, teacher_bk: Tensor, temperature: float, weight_b: Tensor | None = None) -> Tensor:
    """tau^2 KL(softmax(teacher / tau) || softmax(student / tau)), mean over rows.

    The factor keeps the gradient's size independent of tau. No gradient flows into the teacher.

    Args:
        weight_b: what each row counts, 1 on average; all alike without it.

    >>> import torch
    >>> float(distillation(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]]), 4.0))
    0.0

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    student = F.log_softmax(student_bk / temperature, dim=-1)
    teacher = F.log_softmax(teacher_bk.detach() / temperature, dim=-1)
    if weight_b is None:
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
    divergence_b = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return (weight_b * divergence_b).mean() * temperature**2


@torch.no_grad()
def survivor_weights(logits_ebk: Sequence[Tensor], strength: float) -> list[Tensor]:
    """What each row counts at each exit, if sure rows leave on the way: ``e`` tensors ``[b]``, each of mean 1.

    With c_i the largest probability at exit i, a row is still there at exit e for a share 1 - max_{i<e} c_i of all
    thresholds in [0, 1]. Its weight is ``(1 - strength) + strength (1 - max_{i<e} c_i)``, divided by the mean over the
    rows; at exit 0 all rows are there. No gradient flows through a weight.

    >>> import torch
    >>> sure, torn = [9.0, 0.0], [0.0, 0.0]
    >>> first, second = survivor_weights([torch.tensor([sure, torn])] * 2, strength=1.0)
    >>> first.tolist(), second.round(decimals=2).tolist()
    ([1.0, 1.0], [0.0, 2.0])

    Source: Aperstein & Apartsin, Electronics 2026, arXiv:2509.08318 (heads trained on the rows that survive the exits
    before them). Ours weighs the loss instead of drawing rows, anew at every step, and assumes no threshold.
    """
    sureness_b = torch.zeros_like(logits_ebk[0][:, 0])
    weight_eb = []
    for logits_bk in logits_ebk:
        there_b = 1 - strength * sureness_b
        weight_eb.append(there_b / there_b.mean().clamp_min(torch.finfo(there_b.dtype).tiny))
        sureness_b = torch.maximum(sureness_b, logits_bk.softmax(-1).amax(-1))
    return weight_eb
