"""Inversion: samples that are changed until the teacher's BatchNorms and its answers find them right.

Shapes: b samples in a batch, c channels, h height, w width, k classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from dynext.errors import SourceError
from dynext.modules.modes import evaluating
from dynext.net.dynamic_net import DynamicNet
from dynext.types import InputSpec
from dynext.zeroshot.synth.bn_statistics import as_input
from dynext.zeroshot.synth.fitted import Start, starts
from dynext.zeroshot.synth.method import Sampler, samples_per_chunk
from dynext.zeroshot.synth.teacher_student import TeacherAndStudent, check_student
from dynext.zeroshot.synth.terms import competition


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """Weights of the loss and size of the steps, in normalized units."""

    iterations: int = 7
    """Few, with large steps: twice the samples are worth more than twice the iterations."""
    lr: float = 0.1
    bn: float = 1.0
    ce: float = 0.2
    tv: float = 0.02
    l2: float = 0.001
    compete: float = 1.0
    """Weight of disagreement with the exits; counts only where there is a student (``against``)."""
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
    start: Start = "fitted",
    styles: int = 4,
    candidates: int = 24,
    settings: Inversion = DEFAULT,
    against: DynamicNet | None = None,
) -> Sampler:
    """Samples warm-started from the styles that fit the teacher best (or from ``start``), then inverted chunk by chunk.

    With ``against``, a net whose exits were distilled on earlier samples, they also move to where those exits disagree
    with the teacher: samples for a second round (`dynext.zeroshot.rounds`).
    """
    if against is not None:
        check_student(teacher, against, spec)
    first = starts(teacher, spec, seed, start, styles=styles, candidates=candidates)

    def sample(count: int, draw: Generator) -> Tensor:
        return invert(teacher, first.sample(count, draw), spec, draw, settings, against=against)

    return Sampler(sample=sample, per_chunk=samples_per_chunk(spec.shape), notes=first.notes)


def invert(
    teacher: nn.Module,
    x: Tensor,
    spec: InputSpec,
    draw: Generator,
    config: Inversion,
    *,
    against: DynamicNet | None = None,
) -> Tensor:
    """``x [b c h w]``, moved by Adam for ``config.iterations`` steps; the teacher, frozen in eval, is not changed.

    The loss is ``bn * bn_distance + ce * cross-entropy + tv * total variation + l2 * mean square``, and with a student
    ``+ compete * (1 - competition)``; each step under a random shift (and, half of the time, mirrored). A teacher
    without BatchNorm leaves the first term out. Classes: what the teacher takes each sample for, evened out so that no
    class has more than its share. Pixels stay in [0, 1].

    Source: DeepInversion, Yin et al., CVPR 2020, arXiv:1912.08795, eqs. 2-4 and its adaptive version. Ours starts from
    procedural samples, which tens of steps improve where noise takes thousands, and normalizes the BatchNorm term.
    """
    pair = TeacherAndStudent(teacher, against)
    with torch.no_grad(), evaluating(teacher):
        target_b = balanced_targets(teacher(as_input(teacher, x)))

    def loss(x: Tensor) -> Tensor:
        return _loss(pair, _jittered(x, draw, config), target_b, config)

    return moved(teacher, x, spec, loss, iterations=config.iterations, lr=config.lr)


def moved(
    teacher: nn.Module, x: Tensor, spec: InputSpec, loss: Callable[[Tensor], Tensor], *, iterations: int, lr: float
) -> Tensor:
    """``x [b c h w]`` after ``iterations`` steps of Adam down ``loss(x)``, each followed by a return to real pixels."""
    x = as_input(teacher, x).clone()
    low, high = (spec.normalize(torch.full((1, x.shape[1], 1, 1), edge)).to(x) for edge in (0.0, 1.0))
    with evaluating(teacher), torch.enable_grad():
        optimizer = torch.optim.Adam([x.requires_grad_()], lr=lr, betas=(0.5, 0.9))
        for _ in range(iterations):
            (x.grad,) = torch.autograd.grad(loss(x), x)
            optimizer.step()
            with torch.no_grad():
                x.clamp_(low, high)
    return x.detach().float().cpu()


def _loss(pair: TeacherAndStudent, x: Tensor, target_b: Tensor, config: Inversion) -> Tensor:
    observed = pair(x)
    loss = config.ce * F.cross_entropy(observed.answer_bk, target_b)
    if observed.distance is not None:
        loss = config.bn * observed.distance + loss
    loss = loss + config.tv * total_variation(x) + config.l2 * x.square().mean()
    if observed.taps:
        loss = loss + config.compete * (1 - competition(pair.exits(observed.taps), observed.answer_bk).mean())
    return loss


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute difference of neighboring pixels, both directions added; samples one pixel high have but one."""
    differences = [x.diff(dim=axis).abs().mean() for axis in (-1, -2) if x.shape[axis] > 1]
    return torch.stack(differences).sum() if differences else x.new_zeros(())


def _jittered(x: Tensor, draw: Generator, config: Inversion) -> Tensor:
    shift_y, shift_x = torch.randint(-config.jitter, config.jitter + 1, (2,), generator=draw).tolist()
    mirrored = config.flip and bool(torch.rand((), generator=draw) < 0.5)
    x = torch.roll(x, (shift_y, shift_x), (-2, -1))
    return x.flip(-1) if mirrored else x


def balanced_targets(answer_bk: Tensor) -> Tensor:
    """A class for each sample ``[b]``, by the teacher's answers, no class more than ``ceil(b / k)`` times.

    The surest samples choose first; a sample whose class is full takes the next it styles like.
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
