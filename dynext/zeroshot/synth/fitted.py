"""Procedural samples fitted to a teacher: of a few dozen looks, those that its statistics and its answers like best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from dynext.errors import SourceError
from dynext.modules.modes import evaluating
from dynext.seeding import generator
from dynext.types import InputSpec
from dynext.zeroshot.synth.bn_statistics import answer_and_bn_distance, as_input, has_batch_norm
from dynext.zeroshot.synth.method import Maker, rows_per_chunk
from dynext.zeroshot.synth.procedural import paint
from dynext.zeroshot.synth.styles import PRESETS, Look, random_look, varied


@dataclass(frozen=True, kw_only=True)
class FittedLook:
    """A look and how well it suits a teacher: ``loss`` is lower-is-better."""

    look: Look
    distance: float
    """`bn_distance` of its samples; 0 for a teacher without BatchNorm."""
    balance: float
    """Entropy of the mean answer, in [0, 1]; 1 is every class alike."""

    @property
    def loss(self) -> float:
        return self.distance + (1 - self.balance)


def fit_look(
    teacher: nn.Module, spec: InputSpec, seed: int, *, looks: int = 4, candidates: int = 24
) -> tuple[FittedLook, ...]:
    """The best ``looks`` of presets, random looks and variations of the best three, the best first.

    A look is judged by how near its samples' statistics are to those stored in the teacher's BatchNorms, and how evenly
    the teacher's answers fall on the classes: all by a few samples, the best third again by a full batch (so do at
    least ``looks``). No image is needed; a small net takes seconds.

    Raises:
        SourceError: fewer than one look or candidate.

    Source of the halving: Jamieson & Talwalkar, AISTATS 2016, arXiv:1502.07943, here in two rounds.
    """
    if looks < 1 or candidates < 1:
        raise SourceError(f"looks={looks}, candidates={candidates}; give at least one of each")
    draw = generator(seed)
    rows = max(rows_per_chunk(spec.shape) // 2, 8)
    few = max(rows // 4, 8)
    tried = [*PRESETS.values()]
    tried += [random_look(draw) for _ in range(max(candidates * 2 // 3 - len(tried), 0))]
    screened = sorted((_judge(teacher, spec, look, seed, few) for look in tried), key=lambda f: f.loss)
    for i in range(candidates - len(tried)):
        screened.append(_judge(teacher, spec, varied(screened[i % 3].look, draw), seed, few))
    screened.sort(key=lambda f: f.loss)
    again = screened[: max(math.ceil(len(screened) / 3), looks)]
    best = sorted((_judge(teacher, spec, f.look, seed, rows) for f in again), key=lambda f: f.loss)
    return tuple(best[:looks])


@torch.no_grad()
def _judge(teacher: nn.Module, spec: InputSpec, look: Look, seed: int, rows: int) -> FittedLook:
    # The same seed for every look: they differ in their parameters, not in their luck.
    x = as_input(teacher, spec.normalize(paint(rows, spec.shape, generator(seed), look)))
    if has_batch_norm(teacher):
        answer, distance = answer_and_bn_distance(teacher, x)
    else:
        with evaluating(teacher):
            answer, distance = teacher(x), torch.zeros(())
    mean_k = answer.float().softmax(-1).mean(0)
    entropy = float(-(mean_k * mean_k.clamp_min(1e-12).log()).sum())
    # A few samples cannot have more classes than they are, but each may be of two minds: hence the second bound.
    balance = min(entropy / math.log(max(min(len(mean_k), rows), 2)), 1.0)
    return FittedLook(look=look, distance=float(distance), balance=balance)


def mixture(n: int, shape: tuple[int, ...], draw: Generator, looks: Sequence[Look]) -> Tensor:
    """Samples ``[n c h w]`` in mixed order: half by the first look, the rest by the others in equal parts."""
    others = max(len(looks) - 1, 1)
    share = [n - n // 2 if len(looks) > 1 else n] + [(n // 2 + i) // others for i in range(len(looks) - 1)]
    painted = [paint(rows, shape, draw, look) for look, rows in zip(looks, share, strict=True) if rows]
    return torch.cat(painted)[torch.randperm(n, generator=draw)]


def fitted(teacher: nn.Module, spec: InputSpec, seed: int, *, looks: int = 4, candidates: int = 24) -> Maker:
    """Mixed samples of the ``looks`` best looks among ``candidates``."""
    best = fit_look(teacher, spec, seed, looks=looks, candidates=candidates)
    return Maker(
        rows=lambda count, draw: spec.normalize(mixture(count, spec.shape, draw, [f.look for f in best])),
        per_chunk=rows_per_chunk(spec.shape),
        notes=notes(best),
    )


def notes(best: Sequence[FittedLook]) -> dict[str, Any]:
    """What the provenance tells of the looks."""
    return {"looks": [asdict(f) for f in best]}
