"""BatchNorm statistics: run a frozen net on those of the batch, and measure how far a batch is from the stored ones.

Shapes: b rows in a batch, c channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from dynext.errors import SourceError


def _batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """BatchNorm1d/2d/3d and their subclasses (timm's), each once; SyncBatchNorm would wait for other processes."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm)]


def has_batch_norm(module: nn.Module) -> bool:
    """Whether the net holds running statistics that `bn_distance` can compare with."""
    return any(norm.running_mean is not None for norm in _batch_norms(module))


@contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, every BatchNorm of ``module`` uses the statistics of the batch it sees; no buffer is ever touched.

    Synthetic rows do not have the training set's statistics; a frozen net sees them as it would see training rows
    when each layer is normalized by the rows themselves. Nothing else changes mode: dropout stays off. Batches need
    at least two values a channel, as in training. SyncBatchNorm keeps its running statistics.

    Source: the idea of Raikwar and Mishra, NeurIPS 2022 ("Discovering and overcoming limitations of noise-engineered
    data-free knowledge distillation"); ours writes no running statistics, so there is nothing to put back.
    """
    norms = _batch_norms(module)
    kept = [(norm.training, norm.track_running_stats) for norm in norms]
    try:
        for norm in norms:
            # Not .train(): timm's BatchNorms carry an activation and a dropout as children, which must stay in eval.
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm, (training, tracking) in zip(norms, kept, strict=True):
            norm.training, norm.track_running_stats = training, tracking


@contextmanager
def _bn_terms(teacher: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, each forward pass appends one distance per BatchNorm to the list."""
    terms: list[Tensor] = []

    def measure(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        terms.append(_distance(inputs[0], norm.running_mean, norm.running_var, norm.eps))

    handles: list[RemovableHandle] = []
    try:
        for norm in _batch_norms(teacher):
            if norm.running_mean is not None:
                handles.append(norm.register_forward_pre_hook(measure))
        yield terms
    finally:
        for handle in handles:
            handle.remove()


def _distance(x: Tensor, mean_c: Tensor, var_c: Tensor, eps: float) -> Tensor:
    axes = [axis for axis in range(x.ndim) if axis != 1]
    found_var_c, found_mean_c = torch.var_mean(x, axes, correction=0)
    # eps under both roots: the root's slope at an all-constant channel would be infinite.
    gap_c = (found_mean_c - mean_c).square() + ((found_var_c + eps).sqrt() - (var_c + eps).sqrt()).square()
    return (gap_c / (var_c + eps)).mean()


def bn_distance(teacher: nn.Module, x: Tensor) -> Tensor:
    """How far the statistics of ``x [b ...]`` are from the teacher's own: a scalar, 0 is a perfect match.

    At the input of each BatchNorm, with batch mean m and deviation s, stored mean r and deviation t per channel:
    ``mean over channels of ((m - r)^2 + (s - t)^2) / t^2``, then the mean over the layers. That is the squared
    Wasserstein distance between two normal distributions in units of the stored variance, so that one weight suits
    nets and layers of any scale. Differentiable in ``x``; the teacher runs in the mode it is in (eval: running
    statistics) and is not changed.

    Raises:
        SourceError: the teacher holds no running statistics.

    Source: DeepInversion, Yin et al., CVPR 2020, arXiv:1912.08795, eq. 4, whose terms are plain norms of the
    differences of means and variances.
    """
    return answer_and_bn_distance(teacher, x)[1]


def answer_and_bn_distance(teacher: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher's answer on ``x`` and `bn_distance`, from one forward pass."""
    with _bn_terms(teacher) as terms:
        answer = teacher(x)
    if not terms:
        raise SourceError(
            f"{type(teacher).__name__} has no BatchNorm with running statistics to compare with; "
            f"use has_batch_norm(net) first, or a method that needs none (leaves, objects)"
        )
    return answer, torch.stack(terms).mean()
