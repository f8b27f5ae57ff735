"""A teacher's answer, and its last linear layer: the weights tell which classes are alike, the input is the feature.

Shapes: b samples, k classes, d features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynext.errors import FitError, SourceError, line
from dynext.modules.layer_outputs import given_to
from dynext.modules.modes import evaluating
from dynext.net.last_layer import Linear, deciding_layer
from dynext.seeding import generator
from dynext.types import InputSpec
from dynext.zeroshot.synth.bn_statistics import as_input

ASKED = 4
"""Samples of noise by which a teacher's answer is looked at."""


def needed_layer(teacher: nn.Module, spec: InputSpec) -> Linear:
    """`dynext.net.last_layer.deciding_layer` of the teacher, tried on noise.

    Raises:
        SourceError: no such layer, or fewer than two classes.
    """
    try:
        return deciding_layer(teacher, as_input(teacher, torch.randn(2, *spec.shape, generator=generator(0))))
    except FitError as error:
        raise SourceError(f"{error}; use a method that needs none (fitted, inversion, generator)") from error


def feature_layer(teacher: nn.Module, spec: InputSpec) -> Linear | None:
    """`needed_layer`, or ``None`` where there is none."""
    try:
        return needed_layer(teacher, spec)
    except SourceError:
        return None


def weights(layer: Linear) -> Tensor:
    """``[k d]``, detached."""
    return layer.weight.detach().flatten(1)


def answer_and_feature(teacher: nn.Module, layer: Linear | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher's logits ``[b k]`` on ``x`` and what ``layer`` sees, averaged over places ``[b d]``.

    Without a layer (a net that has none) the logits are the feature. Modes are the caller's business.
    """
    if layer is None:
        answer = teacher(x)
        return answer, answer
    with given_to(layer) as given:
        answer = teacher(x)
    feature = given[-1]
    if isinstance(layer, nn.Conv2d):
        return answer, feature.mean((2, 3))
    return answer, feature.flatten(1, -2).mean(1) if feature.ndim > 2 else feature


@torch.no_grad()
def answers(teacher: nn.Module, spec: InputSpec) -> Tensor:
    """What ``teacher``, in evaluation, answers to a few samples of noise ``[b k]``.

    Raises:
        SourceError: it fails on samples of this shape, or answers something else than one tensor ``[b k]``.
    """
    kind = type(teacher).__name__
    x = as_input(teacher, torch.randn(ASKED, *spec.shape, generator=generator(0)))
    try:
        with evaluating(teacher):
            answer = teacher(x)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise SourceError(
            f"{kind} does not take samples of shape {spec.shape} ({line(error)}); give the shape of one sample that it "
            f"expects"
        ) from error
    if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != ASKED:
        told = f"shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        raise SourceError(
            f"{kind} answers {told} for {ASKED} samples; give a net that answers one tensor of logits [b k]"
        )
    return answer


def check_logits(teacher: nn.Module, spec: InputSpec) -> None:
    """That ``teacher`` answers with logits of at least two classes.

    Raises:
        SourceError: as `answers`; or one class alone, or probabilities, on which a softmax would make every answer look
            unsure: what a wrong answer costs is then told too low, and thresholds let too many samples leave.
    """
    kind = type(teacher).__name__
    found_bk = answers(teacher, spec).float()
    if found_bk.shape[1] < 2:
        raise SourceError(
            f"{kind} answers one number a sample; exits need a logit for each of two or more classes "
            f"(for a yes-or-no net with logit z: torch.cat([torch.zeros_like(z), z], 1))"
        )
    if bool((found_bk >= 0).all()) and bool(((found_bk.sum(1) - 1).abs() < 0.01).all()):
        raise SourceError(
            f"{kind} answers probabilities (each sample adds up to 1), not logits; leave its softmax out, or take the "
            f"logarithm of what it gives"
        )
