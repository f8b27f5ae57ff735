"""What synthesized samples are trained for besides statistics and classes: samples on which exits and teacher differ.

Shapes: b samples, e exits (the early ones), k classes, d latent values.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def jensen_shannon(p_bk: Tensor, q_bk: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two distributions, per sample ``[b]`` (leading axes may be more): 0 alike, ln 2
    apart.

    >>> import torch
    >>> jensen_shannon(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.0, 1.0], [0.5, 0.5]])).tolist()
    [0.6931471824645996, 0.0]
    """
    tiny = 1e-12  # p log p goes to 0 with p; its slope must stay finite on the way
    log_mean_bk = ((p_bk + q_bk) / 2).clamp_min(tiny).log()
    halves = [(p * (p.clamp_min(tiny).log() - log_mean_bk)).sum(-1) for p in (p_bk, q_bk)]
    return (halves[0] + halves[1]) / 2


def competition(exits_bek: Tensor, answer_bk: Tensor) -> Tensor:
    """How far the exits' answers are from the teacher's, per sample ``[b]``: the mean Jensen-Shannon divergence.

    Source: DeepInversion, Yin et al., CVPR 2020, arXiv:1912.08795 (``R_compete = 1 - JS``, one student). Ours takes the
    mean over the exits.
    """
    return jensen_shannon(exits_bek.softmax(-1), answer_bk.softmax(-1)[:, None]).mean(1)


def adversarial(exits_bek: Tensor, answer_bk: Tensor) -> Tensor:
    """KL(teacher || exit) on the samples and exits that give the teacher's class, 0 on the others: a scalar to
    maximize.

    An exit that already differs in its class has nothing more to gain, and without this mask a generator runs away
    with a few samples that no exit gets right.

    Source: CMI, Fang et al., IJCAI 2021, arXiv:2105.08584; the game: DFAD, Fang et al. 2019,
    arXiv:1912.11006. Ours takes the mean over the exits.
    """
    target_bek = answer_bk[:, None].expand_as(exits_bek)
    divergence_be = F.kl_div(
        exits_bek.log_softmax(-1), target_bek.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    agree_be = exits_bek.argmax(-1) == answer_bk.argmax(-1)[:, None]
    return (divergence_be * agree_be).mean()


def mode_seeking(first_b: Tensor, second_b: Tensor, z_first_bd: Tensor, z_second_bd: Tensor) -> Tensor:
    """``|z - z'| / |x - x'|``, mean over pairs of samples made for one class from two latents: a scalar to minimize.

    Distances are mean absolute differences.

    Source: Mao et al., CVPR 2019, arXiv:1903.05628 (there the inverse, maximized).
    """
    apart_b = (first_b - second_b).abs().flatten(1).mean(1)
    latent_b = (z_first_bd - z_second_bd).abs().mean(1)
    return (latent_b / (apart_b + 1e-5)).mean()
