"""A teacher's last linear layer: its weights tell which classes are alike, its input is the teacher's feature.

Shapes: b samples, k classes, d features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynext.errors import FitError, SourceError
from dynext.net.last_layer import Linear, deciding_layer, given_to
from dynext.seeding import generator
from dynext.types import InputSpec
from dynext.zeroshot.synth.bn_statistics import as_input


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
