"""Losses as pure functions of tensors, one per published formula.

Shapes: b rows, k classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def distillation(student_bk: Tensor, teacher_bk: Tensor, temperature: float) -> Tensor:
    """tau^2 KL(softmax(teacher / tau) || softmax(student / tau)), mean over rows.

    The factor keeps the gradient's size independent of tau. No gradient flows into the teacher.

    >>> import torch
    >>> float(distillation(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]]), 4.0))
    0.0

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    student = F.log_softmax(student_bk / temperature, dim=-1)
    teacher = F.log_softmax(teacher_bk.detach() / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
