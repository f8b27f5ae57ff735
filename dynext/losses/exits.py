"""Losses of exits, one a published formula, and the weights, targets and temperatures that go with them.

Shapes: b samples, k classes, p positions of an attention map, d the size of an embedding. There are e exits, numbered
from 0, the last is the full net; ``logits_e`` are e tensors ``[b k]``. A loss is one number, the mean over samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def distillation(student_bk: Tensor, teacher_bk: Tensor, temperature: float, weight_b: Tensor | None = None) -> Tensor:
    """tau^2 KL(softmax(teacher / tau) || softmax(student / tau)), mean over samples.

    The factor keeps the gradient's size independent of tau. No gradient flows into the teacher.

    Args:
        weight_b: what each sample counts, 1 on average; all alike without it.

    >>> import torch
    >>> float(distillation(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]]), 4.0))
    0.0

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2; there the cross-entropy (`soft_cross_entropy`), of the same
    gradient.
    """
    student = F.log_softmax(student_bk / temperature, dim=-1)
    teacher = F.log_softmax(teacher_bk.detach() / temperature, dim=-1)
    if weight_b is None:
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
    divergence_b = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return (weight_b * divergence_b).mean() * temperature**2


@torch.no_grad()
def survivor_weights(logits_e: Sequence[Tensor], strength: float) -> list[Tensor]:
    """What each sample counts at each exit, if sure samples leave on the way: ``e`` tensors ``[b]``, each of mean 1.

    With c_i the largest probability at exit i, a sample is still there at exit e for a share 1 - max_{i<e} c_i of all
    thresholds in [0, 1]. Its weight is ``(1 - strength) + strength (1 - max_{i<e} c_i)``, divided by the mean over the
    samples; at exit 0 all samples are there. No gradient flows through a weight.

    >>> import torch
    >>> sure, torn = [9.0, 0.0], [0.0, 0.0]
    >>> first, second = survivor_weights([torch.tensor([sure, torn])] * 2, strength=1.0)
    >>> first.tolist(), second.round(decimals=2).tolist()
    ([1.0, 1.0], [0.0, 2.0])

    Source: Aperstein & Apartsin, Electronics 2026, arXiv:2509.08318 (heads trained on the samples that survive the
    exits before them). Ours weighs the loss instead of drawing samples, anew at every step, and assumes no threshold.
    """
    confidence_b = torch.zeros_like(logits_e[0][:, 0])
    weight_eb = []
    for logits_bk in logits_e:
        there_b = 1 - strength * confidence_b
        weight_eb.append(there_b / there_b.mean().clamp_min(torch.finfo(there_b.dtype).tiny))
        confidence_b = torch.maximum(confidence_b, logits_bk.softmax(-1).amax(-1))
    return weight_eb


def weighted_cross_entropy(logits_e: Sequence[Tensor], y_b: Tensor, weight_e: Sequence[float]) -> Tensor:
    """Sum over exits of ``weight`` times the cross-entropy, each the mean over samples.

    Source: BranchyNet, Teerapittayanon et al., ICPR 2016, arXiv:1709.01686, eq. 1; MSDNet, Huang et al., ICLR 2018,
    arXiv:1703.09844, with all weights 1.
    """
    losses = [w * F.cross_entropy(logits, y_b) for logits, w in zip(logits_e, weight_e, strict=True)]
    return torch.stack(losses).sum()


def shallow_deep_weights(done: float, depth_e: Sequence[float]) -> list[float]:
    """What each exit's loss weighs when a share ``done`` of training is over: ``min(d, 0.01 + done d)``, the last 1.

    ``depth_e`` are the early exits' shares of the net's MACs, which is what they weigh in the end.

    >>> shallow_deep_weights(0.5, [0.2, 0.6])
    [0.11, 0.31, 1.0]

    Source: Kaya et al., ICML 2019, arXiv:1810.07052, section 4.2, with shares of .15 to .9.
    """
    return [*(round(min(d, 0.01 + done * d), 12) for d in depth_e), 1.0]


def soft_cross_entropy(student_bk: Tensor, teacher_bk: Tensor, temperature: float) -> Tensor:
    """tau^2 H(softmax(teacher / tau), softmax(student / tau)), mean over samples.

    H(p, q) is the cross-entropy; `distillation` is the same less the teacher's own entropy, which no student can
    change. No gradient flows into the teacher.

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    target_bk = F.softmax(teacher_bk.detach() / temperature, dim=-1)
    return temperature**2 * F.cross_entropy(student_bk / temperature, target_bk)


def multi_exit_loss(
    logits_e: Sequence[Tensor], temperature: float, teachers: Literal["last", "later"] = "last"
) -> Tensor:
    """Sum over early exits of the mean over their teachers of `soft_cross_entropy`: the last exit, or all later ones.

    It needs no label.

    Source: Phuong & Lampert, ICCV 2019, eq. 3; tau^2 as in its code.
    """
    losses = []
    for e, logits in enumerate(logits_e[:-1]):
        taught_by = logits_e[e + 1 :] if teachers == "later" else logits_e[-1:]
        losses.append(torch.stack([soft_cross_entropy(logits, t, temperature) for t in taught_by]).mean())
    return torch.stack(losses).sum()


def annealed_temperature(temperature: float, teacher_bk: Tensor) -> float:
    """The next temperature: 1.05 times this one while, at this one, the teacher's largest probability exceeds a half.

    The largest probability is the mean over the samples. Training begins at 1.

    Source: Phuong & Lampert, ICCV 2019, section 4.1. Ours asks at each batch.
    """
    confidence = F.softmax(teacher_bk.detach() / temperature, dim=-1).amax(-1).mean()
    return temperature * 1.05 if float(confidence) > 0.5 else temperature


def self_distillation(
    logits_e: Sequence[Tensor], y_b: Tensor, *, alpha: float, temperature: float, teacher_bk: Tensor | None = None
) -> Tensor:
    """``CE(q_C, y)`` of the last exit, plus ``(1 - alpha) CE(q_i, y) + alpha tau^2 KL(q_C || q_i)`` of each early one.

    Args:
        teacher_bk: logits of another teacher in place of the last exit.

    Source: Be Your Own Teacher, Zhang et al., ICCV 2019, arXiv:1905.08094, eq. 1-4; SCAN, Zhang et al., NeurIPS 2019,
    arXiv:1906.03951; IMTA's one-for-all distillation, Li et al., ICCV 2019, arXiv:1908.06294, whose code divides the
    divergence by the number of classes too.
    """
    teacher = logits_e[-1] if teacher_bk is None else teacher_bk
    loss = F.cross_entropy(logits_e[-1], y_b)
    for logits in logits_e[:-1]:
        hard, soft = F.cross_entropy(logits, y_b), distillation(logits, teacher, temperature)
        loss = loss + (1 - alpha) * hard + alpha * soft
    return loss


def hint_loss(embedding_e: Sequence[Tensor], final_bd: Tensor) -> Tensor:
    """Sum over early exits of ``||F_i - F_C||^2``, mean over samples; no gradient flows into the last exit's ``F_C``.

    Args:
        embedding_e: features of each early exit ``[b d]``, brought to the size of the last exit's.

    Source: Be Your Own Teacher, eq. 4, and SCAN, eq. 2.
    """
    return torch.stack([(f - final_bd.detach()).square().sum(-1).mean() for f in embedding_e]).sum()


def exit_probabilities(gate_be: Tensor) -> Tensor:
    """Probability that a sample leaves at each exit ``[b e]``, from what each early exit's gate says ``[b e - 1]``.

    A gate says with which probability a sample leaves that has come so far; whoever leaves at none leaves at the last.

    >>> exit_probabilities(torch.tensor([[0.5, 0.5]])).tolist()
    [[0.5, 0.25, 0.25]]

    Source: JEI-DNN, Regol et al., ICLR 2024, arXiv:2310.09163, section 4.
    """
    stays_be = F.pad((1 - gate_be).cumprod(-1), (1, 0), value=1.0)
    return torch.cat([gate_be, torch.ones_like(gate_be[:, :1])], dim=1) * stays_be


def gate_targets(loss_be: Tensor, cost_e: Tensor, price: float) -> Tensor:
    """What each gate should have said ``[b e - 1]``, 0 or 1: whether leaving is no worse than each later exit.

    How bad an exit is: its loss, and ``price`` times its cost.

    Args:
        loss_be: each exit's cross-entropy.
        cost_e: MACs until each exit, as shares of the whole net's.

    Source: JEI-DNN, Regol et al., ICLR 2024, arXiv:2310.09163, section 4 (the surrogate tasks of the gates).
    """
    total_be = loss_be.detach() + price * cost_e
    best_later_be = total_be.flip(1).cummin(1).values.flip(1)[:, 1:]
    return (total_be[:, :-1] <= best_later_be).to(loss_be.dtype)


def gated_exit_loss(loss_be: Tensor, gate_be: Tensor, cost_e: Tensor, price: float) -> Tensor:
    """Early exits' losses ``[b e]``, each by the probability of leaving there, and the gates' binary cross-entropies.

    Both are means over samples, summed over early exits. Exits learn from the first, gates (``gate_be``, as in
    `exit_probabilities`) from the second, whose targets are `gate_targets`.

    Source: JEI-DNN, Regol et al., ICLR 2024, arXiv:2310.09163, section 4. There the two are levels of one bi-level
    problem; ours takes a step of both at once.
    """
    reach_be = exit_probabilities(gate_be.detach())[:, :-1]
    gate_loss_be = F.binary_cross_entropy(gate_be, gate_targets(loss_be, cost_e, price), reduction="none")
    return (reach_be * loss_be[:, :-1]).mean(0).sum() + gate_loss_be.mean(0).sum()


def attention_transfer(student_bp: Tensor, teacher_bp: Tensor) -> Tensor:
    """``||a_S - a_T||^2`` between attention maps ``[b p]`` (p positions, each of length 1), mean over samples.

    No gradient flows into the teacher.

    Source: Zagoruyko & Komodakis, ICLR 2017, arXiv:1612.03928, eq. 2 (there the norm; ours is squared, smooth at zero).
    """
    return (student_bp - teacher_bp.detach()).square().sum(1).mean()


def attention_mimicry(student_bp: Tensor, teacher_bp: Tensor) -> Tensor:
    """Mean squared difference of two attention maps as distributions over positions ``[b p]``.

    No gradient flows into the teacher.

    Source: SAD, Hou et al., ICCV 2019, arXiv:1908.00821, eq. 2.
    """
    return F.mse_loss(student_bp, teacher_bp.detach())
