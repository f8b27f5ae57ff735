"""How far a batch is from what a teacher was trained on, by the statistics stored in its BatchNorms.

Shapes: b samples in a batch, c channels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dynext.errors import SourceError
from dynext.modules.modes import batch_norms, evaluating


def has_batch_norm(module: nn.Module) -> bool:
    """Whether the net holds running statistics that `bn_distance` can compare with."""
    return bool(batch_norms(module))


def as_input(teacher: nn.Module, x: Tensor) -> Tensor:
    """``x`` on the teacher's device and in its precision."""
    parameter = next(teacher.parameters(), x)
    return x.to(parameter.device, parameter.dtype)


def in_full(net: nn.Module) -> nn.Module:
    """``net``, or a copy in single precision of one in half precision: gradients of single pixels vanish there."""
    low = any(p.dtype in (torch.float16, torch.bfloat16) for p in net.parameters())
    return copy.deepcopy(net).float() if low else net


@contextmanager
def _bn_terms(teacher: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, each forward pass appends one distance per BatchNorm to the list."""
    terms: list[Tensor] = []

    def measure(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        terms.append(_distance(inputs[0], norm.running_mean, norm.running_var, norm.eps))

    handles: list[RemovableHandle] = []
    try:
        handles += [norm.register_forward_pre_hook(measure) for norm in batch_norms(teacher)]
        yield terms
    finally:
        for handle in handles:
            handle.remove()


def _distance(x: Tensor, mean_c: Tensor, var_c: Tensor, eps: float) -> Tensor:
    found_mean_c, found_var_c = moments_of(x)
    # eps under both roots: the root's slope at an all-constant channel would be infinite.
    gap_c = (found_mean_c - mean_c).square() + ((found_var_c + eps).sqrt() - (var_c + eps).sqrt()).square()
    return (gap_c / (var_c + eps)).mean()


def moments_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance ``[c]`` of each channel of ``x [b c ...]``, in single precision at least.

    `torch.var_mean` and its gradient go over ``x`` often enough to take a fifth of an inversion's time; this goes over
    it twice forward and once backward. Each sample is summed on its own first, which keeps rounding small.
    """
    mean_c, var_c = _Moments.apply(x)
    return mean_c, var_c


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        x_bcl = x.flatten(2) if x.ndim > 2 else x[..., None]
        count, exact = x.numel() // x.shape[1], torch.promote_types(x.dtype, torch.float32)
        mean_c = x_bcl.sum(2, dtype=exact).sum(0) / count
        norm_bc = torch.linalg.vector_norm(x_bcl, dim=2, dtype=exact)
        square_c = torch.linalg.vector_norm(norm_bc, dim=0).square() / count
        ctx.save_for_backward(x, mean_c)
        return mean_c, (square_c - mean_c.square()).clamp_min(0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        x, mean_c = ctx.saved_tensors
        by_mean_c, by_var_c = grad_outputs
        count = x.numel() // x.shape[1]
        slope_c = 2 * by_var_c / count
        offset_c = by_mean_c / count - slope_c * mean_c
        each = (-1, *([1] * (x.ndim - 2)))
        return torch.addcmul(offset_c.to(x).view(each), x, slope_c.to(x).view(each))


def bn_distance(teacher: nn.Module, x: Tensor) -> Tensor:
    """How far the statistics of ``x [b ...]`` are from the teacher's own: a scalar, 0 is a perfect match.

    At the input of each BatchNorm, with batch mean m and deviation s, stored mean r and deviation t per channel:
    ``mean over channels of ((m - r)^2 + (s - t)^2) / t^2``, then the mean over the layers. That is the squared
    Wasserstein distance between two normal distributions in units of the stored variance, so that one weight suits
    nets and layers of any scale. Differentiable in ``x``. The teacher runs in eval and is not changed.

    Raises:
        SourceError: the teacher holds no running statistics.

    Source: DeepInversion, Yin et al., CVPR 2020, arXiv:1912.08795, eq. 4, whose terms are plain norms of the
    differences of means and variances.
    """
    return answer_and_bn_distance(teacher, x)[1]


def answer_and_bn_distance(teacher: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher's answer on ``x`` and `bn_distance`, from one forward pass."""
    with _bn_terms(teacher) as terms, evaluating(teacher):
        answer = teacher(x)
    if not terms:
        raise SourceError(
            f"{type(teacher).__name__} has no BatchNorm with running statistics to compare with; "
            f"use has_batch_norm(net) first, or a method that needs none (leaves, objects)"
        )
    return answer, torch.stack(terms).mean()
