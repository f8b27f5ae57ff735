"""Inversion: rows that are changed until the teacher's BatchNorms and its answers find them right.

Shapes: b rows in a batch, c channels, h height, w width, k classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from dynext.core.modes import evaluating
from dynext.errors import SourceError
from dynext.types import InputSpec
from dynext.zeroshot.fitted import fit_look, mixture, notes
from dynext.zeroshot.maker import Maker, rows_per_chunk
from dynext.zeroshot.statistics import answer_and_bn_distance, as_input, has_batch_norm


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """Weights of the loss and size of the steps, in normalized units."""

    iterations: int = 20
    lr: float = 0.05
    bn: float = 1.0
    ce: float = 0.2
    tv: float = 0.02
    l2: float = 0.001
    jitter: int = 2
    flip: bool = True

    def __post_init__(self) -> None:
        if self.iterations < 0 or self.jitter < 0:
            raise SourceError(f"iterations={self.iterations}, jitter={self.jitter}; give 0 or more")
        if not self.lr > 0:
            raise SourceError(f"lr={self.lr}; give a positive step size")


DEFAULT = Inversion()


def inversion(
    teacher: nn.Module,
    spec: InputSpec,
    seed: int,
    *,
    looks: int = 4,
    candidates: int = 24,
    settings: Inversion = DEFAULT,
) -> Maker:
    """Rows warm-started from the looks that fit the teacher best, then inverted chunk by chunk."""
    best = fit_look(teacher, spec, seed, candidates=candidates)[:looks]

    def rows(count: int, draw: Generator) -> Tensor:
        start = spec.normalize(mixture(count, spec.shape, draw, [f.look for f in best]))
        return invert(teacher, start, spec, draw, settings)

    return Maker(rows=rows, per_chunk=rows_per_chunk(spec.shape), notes=notes(best))


def invert(teacher: nn.Module, x: Tensor, spec: InputSpec, draw: Generator, config: Inversion) -> Tensor:
    """``x [b c h w]``, moved by Adam for ``config.iterations`` steps; the teacher, frozen in eval, is not changed.

    The loss is ``bn * bn_distance + ce * cross-entropy + tv * total variation + l2 * mean square``, each step under a
    random shift (and, half of the time, mirrored); a teacher without BatchNorm leaves the first term out. Classes:
    what the teacher takes each row for, evened out so that no class has more than its share. Pixels stay in [0, 1].

    Source: DeepInversion, Yin et al., CVPR 2020, arXiv:1912.08795, eqs. 2-4. Ours starts from procedural rows, which
    tens of steps improve where noise takes thousands, and normalizes the BatchNorm term.
    """
    x = as_input(teacher, x).clone()
    low, high = (spec.normalize(torch.full((1, x.shape[1], 1, 1), edge)).to(x) for edge in (0.0, 1.0))
    with evaluating(teacher), torch.enable_grad():
        with torch.no_grad():
            target_b = balanced_targets(teacher(x))
        optimizer = torch.optim.Adam([x.requires_grad_()], lr=config.lr, betas=(0.5, 0.9))
        for _ in range(config.iterations):
            loss = _loss(teacher, _jittered(x, draw, config), target_b, config)
            (x.grad,) = torch.autograd.grad(loss, x)
            optimizer.step()
            with torch.no_grad():
                x.clamp_(low, high)
    return x.detach().float().cpu()


def _loss(teacher: nn.Module, x: Tensor, target_b: Tensor, config: Inversion) -> Tensor:
    if has_batch_norm(teacher):
        answer, distance = answer_and_bn_distance(teacher, x)
    else:
        answer, distance = teacher(x), x.new_zeros(())
    return (
        config.bn * distance
        + config.ce * F.cross_entropy(answer, target_b)
        + config.tv * total_variation(x)
        + config.l2 * x.square().mean()
    )


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute difference of neighboring pixels, both directions added."""
    return x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean()


def _jittered(x: Tensor, draw: Generator, config: Inversion) -> Tensor:
    shift_y, shift_x = torch.randint(-config.jitter, config.jitter + 1, (2,), generator=draw).tolist()
    mirrored = config.flip and bool(torch.rand((), generator=draw) < 0.5)
    x = torch.roll(x, (shift_y, shift_x), (-2, -1))
    return x.flip(-1) if mirrored else x


def balanced_targets(answer_bk: Tensor) -> Tensor:
    """A class for each row ``[b]``, by the teacher's answers, no class more than ``ceil(b / k)`` times.

    The surest rows choose first; a row whose class is full takes the next it looks like.
    """
    b, k = answer_bk.shape
    room = [-(-b // k)] * k
    ranked_bk = answer_bk.argsort(1, descending=True).tolist()
    target_b = torch.zeros(b, dtype=torch.long)
    for row in answer_bk.softmax(1).amax(1).argsort(descending=True).tolist():
        target = next(c for c in ranked_bk[row] if room[c])
        room[target] -= 1
        target_b[row] = target
    return target_b.to(answer_bk.device)
