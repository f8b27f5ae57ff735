"""What a teacher answers, and the last linear layer that the answer comes out of: its weights tell which classes are
alike, its input is the net's feature.

Shapes: b samples, k classes, d features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dynext.errors import SourceError, line
from dynext.modules.modes import evaluating
from dynext.seeding import generator
from dynext.types import InputSpec
from dynext.zeroshot.synth.bn_statistics import as_input

Linear = nn.Linear | nn.Conv2d

ASKED = 4
"""Samples of noise by which a teacher's answer is looked at."""


@torch.no_grad()
def last_linear(teacher: nn.Module, spec: InputSpec) -> Linear:
    """The layer that gives one value per class: of the linear layers and 1x1 convolutions with as many outputs as there
    are classes, the one that runs last and whose outputs decide.

    Whether they do is tried out: pushing one output up must make that class the answer. So neither the order of
    definition nor a bottleneck that happens to be ``k`` wide misleads.

    Raises:
        SourceError: no such layer, or fewer than two classes.
    """
    x = as_input(teacher, torch.randn(2, *spec.shape, generator=generator(0)))
    ran: list[Linear] = []
    with evaluating(teacher):
        with _hooked(teacher, lambda layer, inputs, output: ran.append(layer)):
            answer_bk = teacher(x)
        k = answer_bk.shape[-1]
        if answer_bk.ndim != 2 or k < 2:
            raise SourceError(
                f"the teacher answers {list(answer_bk.shape)} for 2 samples; expected [2, classes], at least 2"
            )
        for layer in reversed(ran):
            if _outputs(layer) == k and all(_decides(teacher, layer, x, c) for c in (0, k - 1)):
                return layer
    raise SourceError(
        f"{type(teacher).__name__} has no last linear layer (nn.Linear, or nn.Conv2d with a 1x1 kernel) whose {k} "
        f"outputs decide its answer; use a method that needs none (fitted, inversion, generator)"
    )


def _outputs(layer: Linear) -> int:
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels if layer.kernel_size == (1, 1) and layer.groups == 1 else 0
    return layer.out_features


def _decides(teacher: nn.Module, layer: Linear, x: Tensor, c: int) -> bool:
    """Whether class ``c`` becomes the answer when that output of ``layer`` is pushed up."""

    def push(module: Linear, inputs: Any, output: Tensor) -> Tensor:
        pushed = output.clone()
        axis = 1 if isinstance(module, nn.Conv2d) else -1
        pushed.select(axis, c).add_(10 * (output.abs().amax() + 1))
        return pushed

    handle = layer.register_forward_hook(push)
    try:
        return bool((teacher(x).argmax(-1) == c).all())
    finally:
        handle.remove()


@contextmanager
def _hooked(teacher: nn.Module, seen: Callable[[Linear, Any, Tensor], None]) -> Iterator[None]:
    handles: list[RemovableHandle] = []
    try:
        handles += [m.register_forward_hook(seen) for m in teacher.modules() if isinstance(m, Linear)]
        yield
    finally:
        for handle in handles:
            handle.remove()


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
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        answer = teacher(x)
    finally:
        handle.remove()
    feature = seen[-1]
    if isinstance(layer, nn.Conv2d):
        return answer, feature.mean((2, 3))
    return answer, feature.flatten(1, -2).mean(1) if feature.ndim > 2 else feature


def feature_layer(teacher: nn.Module, spec: InputSpec) -> Linear | None:
    """`last_linear`, or ``None`` where there is none."""
    try:
        return last_linear(teacher, spec)
    except SourceError:
        return None


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
