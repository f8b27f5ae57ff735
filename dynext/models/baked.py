"""Weights that a checkpoint keeps in parts (weight_norm, spectral_norm, pruning masks), put together as plain ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor


def baked(state: Mapping[str, Tensor], own: Collection[str]) -> tuple[dict[str, Tensor], list[str]]:
    """``state`` with whole weights in place of their parts, and the names of those weights.

    A net that keeps its weights in such parts itself (its names in ``own`` say so) gets them as they are.
    """
    whole, made = dict(state), []
    for last, parts, make in _KINDS:
        ends = re.compile(rf"(^|.*\.)(parametrizations\.)?\w+{last}$")
        if any(ends.fullmatch(name) for name in own):
            continue
        for name in [name for name in whole if ends.fullmatch(name)]:
            stem = re.sub(rf"{last}$", "", name)
            names = [stem + part for part in parts]
            if all(one in whole for one in names):
                weight = re.sub(r"(^|\.)parametrizations\.(\w+)$", r"\1\2", stem)
                whole[weight] = make(*(whole.pop(one) for one in names))
                made.append(weight)
    return whole, made


def _masked(weight: Tensor, mask: Tensor) -> Tensor:
    return weight * mask.to(weight)


def _normed(length: Tensor, direction: Tensor) -> Tensor:
    """`torch.nn.utils.weight_norm`: the length has one entry for each place along the dimension that is kept."""
    if length.numel() == 1:
        return direction * (length.reshape(()) / direction.norm())
    along = [d for d in range(direction.ndim) if length.shape[d] == 1]
    norm = torch.linalg.vector_norm(direction, dim=along, keepdim=True) if along else direction.abs()
    return direction * (length / norm)


def _spectral(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """`torch.nn.utils.spectral_norm` in evaluation; transposed convolutions have their outputs in dimension 1."""
    first = 0 if (len(u), len(v)) == (len(weight), weight[0].numel()) else 1
    matrix = weight.movedim(first, 0).flatten(1)
    return weight / torch.dot(u, matrix.mv(v))


_KINDS: tuple[tuple[str, tuple[str, ...], Callable[..., Tensor]], ...] = (
    ("_orig", ("_orig", "_u", "_v"), _spectral),
    ("_orig", ("_orig", "_mask"), _masked),
    ("_g", ("_g", "_v"), _normed),
    (r"\.original", (".original", ".0._u", ".0._v"), _spectral),
    (r"\.original0", (".original0", ".original1"), _normed),
)
"""The end of the name by which parts are known, the ends of all of them, and what makes one weight of them."""
