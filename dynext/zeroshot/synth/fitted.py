"""Procedural samples fitted to a teacher: of a few dozen styles, those that its statistics and its answers like
best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor, nn

from dynext.errors import SourceError
from dynext.modules.modes import evaluating
from dynext.seeding import generator
from dynext.types import InputSpec
from dynext.zeroshot.synth.bn_statistics import answer_and_bn_distance, as_input, has_batch_norm
from dynext.zeroshot.synth.method import Sampler, samples_per_chunk
from dynext.zeroshot.synth.procedural import gaussian, leaves, objects, paint
from dynext.zeroshot.synth.styles import LEAVES, OBJECTS, PRESETS, Style, random_style, varied

Start = Literal["fitted", "objects", "leaves", "noise"]
"""What iterative methods start from: samples that already look like something, or noise."""


@dataclass(frozen=True, kw_only=True)
class FittedStyle:
    """A style and how well it suits a teacher: ``loss`` is lower-is-better."""

    style: Style
    distance: float
    """`bn_distance` of its samples; 0 for a teacher without BatchNorm."""
    balance: float
    """Entropy of the mean answer, in [0, 1]; 1 is every class alike."""

    @property
    def loss(self) -> float:
        return self.distance + (1 - self.balance)


def fit_styles(
    teacher: nn.Module, spec: InputSpec, seed: int, *, styles: int = 4, candidates: int = 24
) -> tuple[FittedStyle, ...]:
    """The best ``styles`` of presets, random styles and variations of the best three, the best first.

    A style is judged by how near its samples' statistics are to those stored in the teacher's BatchNorms, and how
    evenly the teacher's answers fall on the classes: all by a few samples, the best third again by a full batch (so do
    at least ``styles``). No image is needed; a small net takes seconds.

    Raises:
        SourceError: fewer than one style or candidate.

    Source of the halving: Jamieson & Talwalkar, AISTATS 2016, arXiv:1502.07943, here in two rounds.
    """
    if styles < 1 or candidates < 1:
        raise SourceError(f"styles={styles}, candidates={candidates}; give at least one of each")
    draw = generator(seed)
    rows = max(samples_per_chunk(spec.shape) // 2, 8)
    few = max(rows // 4, 8)
    tried = [*PRESETS.values()]
    tried += [random_style(draw) for _ in range(max(candidates * 2 // 3 - len(tried), 0))]
    screened = sorted((_scored(teacher, spec, style, seed, few) for style in tried), key=lambda f: f.loss)
    for i in range(candidates - len(tried)):
        screened.append(_scored(teacher, spec, varied(screened[i % 3].style, draw), seed, few))
    screened.sort(key=lambda f: f.loss)
    again = screened[: max(math.ceil(len(screened) / 3), styles)]
    best = sorted((_scored(teacher, spec, f.style, seed, rows) for f in again), key=lambda f: f.loss)
    return tuple(best[:styles])


@torch.no_grad()
def _scored(teacher: nn.Module, spec: InputSpec, style: Style, seed: int, rows: int) -> FittedStyle:
    # The same seed for every style: they differ in their parameters, not in their luck.
    x = as_input(teacher, spec.normalize(paint(rows, spec.shape, generator(seed), style)))
    if has_batch_norm(teacher):
        answer, distance = answer_and_bn_distance(teacher, x)
    else:
        with evaluating(teacher):
            answer, distance = teacher(x), torch.zeros(())
    mean_k = answer.float().softmax(-1).mean(0)
    entropy = float(-(mean_k * mean_k.clamp_min(1e-12).log()).sum())
    # A few samples cannot have more classes than they are, but each may be of two minds: hence the second bound.
    balance = min(entropy / math.log(max(min(len(mean_k), rows), 2)), 1.0)
    return FittedStyle(style=style, distance=float(distance), balance=balance)


def mixture(n: int, shape: tuple[int, ...], draw: Generator, styles: Sequence[Style]) -> Tensor:
    """Samples ``[n c h w]`` in mixed order: half by the first style, the rest by the others in equal parts."""
    others = max(len(styles) - 1, 1)
    share = [n - n // 2 if len(styles) > 1 else n] + [(n // 2 + i) // others for i in range(len(styles) - 1)]
    painted = [paint(rows, shape, draw, style) for style, rows in zip(styles, share, strict=True) if rows]
    return torch.cat(painted)[torch.randperm(n, generator=draw)]


def fitted(teacher: nn.Module, spec: InputSpec, seed: int, *, styles: int = 4, candidates: int = 24) -> Sampler:
    """Mixed samples of the ``styles`` best styles among ``candidates``."""
    best = fit_styles(teacher, spec, seed, styles=styles, candidates=candidates)
    return Sampler(
        sample=lambda count, draw: spec.normalize(mixture(count, spec.shape, draw, [f.style for f in best])),
        per_chunk=samples_per_chunk(spec.shape),
        notes=notes(best),
    )


def notes(best: Sequence[FittedStyle]) -> dict[str, Any]:
    """What the provenance tells of the styles."""
    return {"styles": [asdict(f) for f in best]}


@dataclass(frozen=True, kw_only=True)
class Starts:
    """``sample(count, draw)``: samples to start from ``[count c h w]``, normalized; ``notes`` for the provenance."""

    sample: Callable[[int, Generator], Tensor]
    notes: dict[str, Any] = field(default_factory=dict)


def starts(
    teacher: nn.Module, spec: InputSpec, seed: int, kind: Start, *, styles: int = 4, candidates: int = 24
) -> Starts:
    """Samples of the ``styles`` that fit the teacher best, of one of the named styles, or Gaussian noise.

    Raises:
        SourceError: no such start.
    """
    if kind == "fitted":
        best = fit_styles(teacher, spec, seed, styles=styles, candidates=candidates)
        chosen = [f.style for f in best]
        return Starts(
            sample=lambda count, draw: spec.normalize(mixture(count, spec.shape, draw, chosen)), notes=notes(best)
        )
    if kind == "objects":
        return Starts(sample=lambda count, draw: spec.normalize(objects(count, spec.shape, draw, OBJECTS)))
    if kind == "leaves":
        return Starts(sample=lambda count, draw: spec.normalize(leaves(count, spec.shape, draw, LEAVES)))
    if kind == "noise":
        return Starts(sample=lambda count, draw: gaussian(count, spec.shape, draw))
    raise SourceError(f"start={kind!r}; give one of {', '.join(get_args(Start))}")
