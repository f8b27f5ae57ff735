"""What a teacher must answer before anything can be learned from it.

Shapes: b samples, k classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynext.errors import SourceError, line
from dynext.modules.modes import evaluating
from dynext.seeding import generator
from dynext.types import InputSpec
from dynext.zeroshot.synth.bn_statistics import as_input

ROWS = 4


@torch.no_grad()
def answers(teacher: nn.Module, spec: InputSpec) -> Tensor:
    """What ``teacher``, in evaluation, answers to a few samples of noise ``[b k]``.

    Raises:
        SourceError: it fails on samples of this shape, or answers something else than one tensor ``[b k]``.
    """
    kind = type(teacher).__name__
    x = as_input(teacher, torch.randn(ROWS, *spec.shape, generator=generator(0)))
    try:
        with evaluating(teacher):
            found = teacher(x)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise SourceError(
            f"{kind} does not take samples of shape {spec.shape} ({line(error)}); give the shape of one sample that it "
            f"expects"
        ) from error
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != ROWS:
        told = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise SourceError(
            f"{kind} answers {told} for {ROWS} samples; give a net that answers one tensor of logits [b k]"
        )
    return found


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
