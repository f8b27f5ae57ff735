"""Samples drawn from a generator that was trained for one teacher.

Shapes: b samples, n samples of a chunk, k classes, d latent values.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Generator as Draw
from torch import Tensor, nn

from dynext.errors import SourceError
from dynext.modules.modes import evaluating
from dynext.net.dynamic_net import DynamicNet
from dynext.types import InputSpec
from dynext.zeroshot.synth.bn_statistics import as_input
from dynext.zeroshot.synth.fitted import Starts, starts
from dynext.zeroshot.synth.generator_training import GeneratorSettings, GeneratorTraining, trained
from dynext.zeroshot.synth.inversion import balanced_targets
from dynext.zeroshot.synth.method import Sampler, UntrainedSampler, Work, samples_per_chunk
from dynext.zeroshot.synth.teacher_student import check_student

DEFAULT = GeneratorSettings()

POOL, POOL_VALUES = 2048, 2**25
"""Starting samples that a warm generator trains on at most (fewer large ones); it paints over fresh ones afterwards."""


def generator(
    teacher: nn.Module,
    spec: InputSpec,
    seed: int,
    *,
    start: Literal["noise", "fitted"] = "noise",
    styles: int = 4,
    candidates: int = 24,
    settings: GeneratorSettings = DEFAULT,
    against: DynamicNet | None = None,
) -> UntrainedSampler:
    """Samples of a conditional generator, trained once; a training that was killed goes on where its folder left it.

    The loss is ``bn * bn_distance + ce * cross-entropy to the wanted class - adv * adversarial + diversity *
    mode_seeking``: without BatchNorm in the teacher the first term is left out, without ``against`` the third. Samples
    are drawn from the last generator and from younger ones (``settings.ages``), classes evenly.

    Args:
        start: ``"fitted"``: the generator changes samples that fit the teacher, instead of making some from nothing.
        against: a net whose exits should learn from the samples; it stays as it is, a copy of its exits plays along.

    Raises:
        SourceError: no such start, or a student that cannot disagree with the teacher.

    Source: DAFL, Chen et al., ICCV 2019, arXiv:1904.01186; DFAD, Fang et al. 2019, arXiv:1912.11006; CMI, Fang et al.,
    IJCAI 2021, arXiv:2105.08584 (BatchNorm, class and adversarial terms, a bank). Ours plays against early exits.
    """
    if against is not None:
        check_student(teacher, against, spec)
    if start not in ("noise", "fitted"):
        raise SourceError(f"start={start!r}; give noise or fitted")

    def prepare(work: Work) -> Sampler:
        warm = None
        if start == "fitted":
            warm = starts(teacher, spec, seed, start, styles=styles, candidates=candidates)
        pool = None if warm is None else _pool(teacher, spec, warm, seed)
        training = trained(teacher, spec, seed, settings, against=against, pool=pool, work=work)
        return Sampler(
            sample=lambda count, draw: _drawn(training, teacher, spec, warm, count, draw),
            per_chunk=samples_per_chunk(spec.shape),
            notes={} if warm is None else warm.notes,
        )

    return UntrainedSampler(prepare=prepare, per_chunk=samples_per_chunk(spec.shape))


def _pool(teacher: nn.Module, spec: InputSpec, warm: Starts, seed: int) -> tuple[Tensor, Tensor]:
    """Samples to start from as pixels ``[n c h w]``, and the class that suits each ``[n]``."""
    draw, size = Draw().manual_seed(seed), samples_per_chunk(spec.shape)
    wanted = min(POOL, POOL_VALUES // math.prod(spec.shape))
    parts = [warm.sample(size, draw) for _ in range(max(wanted // size, 1))]
    return torch.cat([spec.pixels(x) for x in parts]), torch.cat([_classes(teacher, x) for x in parts])


@torch.no_grad()
def _classes(teacher: nn.Module, x: Tensor) -> Tensor:
    with evaluating(teacher):
        return balanced_targets(teacher(as_input(teacher, x))).cpu()


@torch.no_grad()
def _drawn(
    training: GeneratorTraining, teacher: nn.Module, spec: InputSpec, warm: Starts | None, count: int, draw: Draw
) -> Tensor:
    """``count`` samples, in mixed order of class and age."""
    generators = [*training.ages, training.generator]
    like = training.generator.fill.weight
    num_classes, latent = training.generator.classes.weight.shape
    start = None if warm is None else warm.sample(count, draw)
    if start is None:
        # The classes, too, in another order each time: a chunk may hold fewer samples than there are classes.
        class_n = torch.randperm(num_classes, generator=draw)[torch.arange(count) % num_classes]
    else:
        class_n = _classes(teacher, start)
    z_nd = torch.randn(count, latent, generator=draw)
    age_n = torch.randperm(count, generator=draw) % len(generators)
    pixels = torch.empty(count, *spec.shape)
    for age, net in enumerate(generators):
        rows = (age_n == age).nonzero()[:, 0]
        if len(rows):
            given = [] if start is None else [spec.pixels(start[rows]).to(like)]
            pixels[rows] = net(z_nd[rows].to(like), class_n[rows].to(like.device), *given).float().cpu()
    return spec.normalize(pixels)
