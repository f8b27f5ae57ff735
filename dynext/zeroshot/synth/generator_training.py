"""How a generator is trained: to give what the teacher asks for and what exits do not know yet.

Shapes: b samples, e exits (the early ones), k classes, d latent values.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.func import functional_call

from dynext.errors import SourceError
from dynext.fitting import FitConfig, fit
from dynext.losses.exits import distillation
from dynext.modules.exits import Exit
from dynext.modules.modes import evaluating
from dynext.net.dynamic_net import DynamicNet
from dynext.seeding import seeded
from dynext.types import InputSpec
from dynext.zeroshot.synth.bn_statistics import as_input
from dynext.zeroshot.synth.generator_net import GeneratorNet
from dynext.zeroshot.synth.method import Work, samples_per_chunk
from dynext.zeroshot.synth.teacher_student import TeacherAndStudent
from dynext.zeroshot.synth.terms import adversarial, mode_seeking

CHECKPOINT_SECONDS = 60.0
CHASE_TEMPERATURE = 4.0
"""Of the exits' distillation within this training; `distill`'s own default."""


@dataclass(frozen=True, kw_only=True)
class GeneratorSettings:
    """How a generator is trained: size, steps and the weights of its loss."""

    steps: int = 300
    batch_size: int = 128
    """At most; of large samples as many as a chunk holds."""
    lr: float = 2e-3
    latent: int = 64
    width: int = 32
    """Channels at full size, twice as many below."""
    bn: float = 1.0
    ce: float = 5.0
    adv: float = 1.0
    """Weight of the exits' divergence from the teacher; counts only where there is a student (``against``)."""
    diversity: float = 0.0
    chase: bool = True
    """The student's exits (a copy) learn on the generated samples meanwhile, so that the generator has to move on."""
    ages: int = 3
    """Generators that samples are drawn from: the last, and ones kept at even distances on the way's second half."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 2 or self.latent < 1 or self.width < 1:
            raise SourceError(
                f"steps={self.steps}, batch_size={self.batch_size}, latent={self.latent}, width={self.width}; "
                f"give at least 1 (2 samples a batch)"
            )
        if not self.lr > 0 or not 1 <= self.ages <= self.steps:
            raise SourceError(f"lr={self.lr}, ages={self.ages}; give a positive rate, 1 to {self.steps} ages")

    def kept_at(self) -> list[int]:
        """The steps before which a younger generator is kept, in order; the last age needs none."""
        return [round(self.steps * (0.5 + 0.5 * i / self.ages)) for i in range(self.ages - 1)]


class GeneratorTraining(nn.Module):
    """What is trained and what a kill leaves: the generator, its younger selves, the exits that learn meanwhile."""

    def __init__(self, generator: GeneratorNet, ages: int, exits: Sequence[Exit]) -> None:
        super().__init__()
        self.generator = generator
        self.ages = cast("list[GeneratorNet]", nn.ModuleList(copy.deepcopy(generator) for _ in range(ages - 1)))
        for age in self.ages:
            age.requires_grad_(False)
        self.exits = cast("list[Exit]", nn.ModuleList(exits))

    def forward(self, *asked: Any) -> Tensor:
        """The generator's pixels."""
        return self.generator(*asked)

    def keep_age(self, settings: GeneratorSettings, done: float) -> None:
        """Keep the generator as it is now, if this is a step to keep it at."""
        now = round(done * settings.steps)
        for age, at in zip(self.ages, settings.kept_at(), strict=True):
            if now == at:
                age.load_state_dict(self.generator.state_dict())


def trained(
    teacher: nn.Module,
    spec: InputSpec,
    seed: int,
    settings: GeneratorSettings,
    *,
    against: DynamicNet | None,
    pool: tuple[Tensor, Tensor] | None,
    work: Work,
) -> GeneratorTraining:
    """All that was trained, in eval, on the teacher's device; teacher and ``against`` stay as they are.

    Args:
        pool: pixels to start from ``[n c h w]`` with a class each ``[n]``, for a generator that changes samples.
    """
    settings = replace(settings, batch_size=min(settings.batch_size, samples_per_chunk(spec.shape)))
    # Copies: the parameters of the caller's nets must collect no gradient.
    frozen = copy.deepcopy(teacher).requires_grad_(False)
    rival = None if against is None else copy.deepcopy(against).requires_grad_(False)
    like = as_input(frozen, torch.zeros(1, *spec.shape))
    with torch.no_grad(), evaluating(frozen):
        num_classes = frozen(like).shape[-1]
    with seeded(seed):
        generator = GeneratorNet(
            spec.shape, num_classes, latent=settings.latent, width=settings.width, warm=pool is not None
        )
    training = GeneratorTraining(generator.to(like), settings.ages, [] if rival is None else rival.exits).train()
    for exit in training.exits:
        exit.requires_grad_(settings.chase)
    pair = TeacherAndStudent(frozen, rival)

    def step(module: nn.Module, draw: Generator, done: float) -> Tensor:
        training.keep_age(settings, done)
        z_bd, class_b, start = _asked(settings, num_classes, pool, draw, like)
        # Whoever wraps the module for training may hand out single precision.
        x = spec.normalize(module(z_bd, class_b, *start).to(like))
        return _loss(pair, training, settings, x, z_bd, class_b)

    fit(training, step, _config(settings, seed, like, work), modes="given")
    return training.eval()


def _config(settings: GeneratorSettings, seed: int, like: Tensor, work: Work) -> FitConfig:
    return FitConfig(
        steps=settings.steps,
        lr=settings.lr,
        seed=seed,
        checkpoint=work.checkpoint("generator"),
        checkpoint_seconds=CHECKPOINT_SECONDS,
        accelerator="cuda" if like.is_cuda else "cpu",
        precision="64-true" if like.dtype == torch.double else "32-true",
        progress=work.progress,
        label="training generator",
    )


def _asked(
    settings: GeneratorSettings, num_classes: int, pool: tuple[Tensor, Tensor] | None, draw: Generator, like: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Latents, classes and perhaps starts; both halves of a batch ask for the same, so that pairs can be told apart."""
    b, half = settings.batch_size, -(-settings.batch_size // 2)
    z_bd = torch.randn(b, settings.latent, generator=draw).to(like)
    if pool is None:
        class_b = torch.randint(num_classes, (half,), generator=draw).repeat(2)[:b]
        return z_bd, class_b.to(like.device), []
    pixels, class_n = pool
    index_b = torch.randint(len(class_n), (half,), generator=draw).repeat(2)[:b]
    return z_bd, class_n[index_b].to(like.device), [pixels[index_b].to(like)]


def _loss(
    pair: TeacherAndStudent,
    training: GeneratorTraining,
    settings: GeneratorSettings,
    x: Tensor,
    z_bd: Tensor,
    class_b: Tensor,
) -> Tensor:
    observed = pair(x)
    loss = settings.ce * F.cross_entropy(observed.answer_bk, class_b)
    if observed.distance is not None:
        loss = loss + settings.bn * observed.distance
    if settings.diversity:
        second = -(-len(x) // 2)
        first = len(x) - second
        pairs = (x[:first], x[second:], z_bd[:first], z_bd[second:])
        loss = loss + settings.diversity * mode_seeking(*pairs)
    if observed.taps:
        loss = loss - settings.adv * adversarial(_frozen_exits(training, observed.taps), observed.answer_bk)
    if observed.taps and settings.chase:
        early = [exit(tap.detach()) for exit, tap in zip(training.exits, observed.taps, strict=True)]
        loss = loss + torch.stack([distillation(e, observed.answer_bk, CHASE_TEMPERATURE) for e in early]).sum()
    return loss


def _frozen_exits(training: GeneratorTraining, taps: list[Tensor]) -> Tensor:
    """The exits' logits ``[b e k]`` in eval, so that gradients reach the samples and not the exits."""
    logits_e = []
    for exit, tap in zip(training.exits, taps, strict=True):
        with evaluating(exit):
            logits_e.append(functional_call(exit, {name: p.detach() for name, p in exit.named_parameters()}, (tap,)))
    return torch.stack(logits_e, dim=1)
