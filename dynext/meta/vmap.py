"""All episodes of a step at once (``torch.func.vmap``), where that is right.

A CPU gains little from it and pays in memory; it is for accelerators.

Shapes: t episodes, b samples of each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from dynext.errors import FitError
from dynext.meta.engines import differentiable_attention
from dynext.meta.functional import called_with
from dynext.meta.inner import InnerLoop, loss_of
from dynext.meta.loss import MetaLoss, PreparedClaim


def check_vmap(net: nn.Module, inner: InnerLoop) -> None:
    """Refuse what vmap gets silently wrong, or cannot do.

    With torch 2.13, BatchNorm on statistics of the batch, InstanceNorm and LayerNorm, each with a scale and a shift,
    give second-order gradients that are off by several per cent under vmap. GroupNorm, norms without a scale, and
    frozen statistics are exact.

    Raises:
        FitError: names the first such layer.
    """
    if inner.rule not in ("second_order", "first_order") or inner.bn == "per_step" or inner.learned_lr:
        raise FitError(
            f"vmap does first- and second-order loops with one step size and bn='task' or 'frozen'; given rule="
            f"{inner.rule!r}, bn={inner.bn!r}, learned_lr={inner.learned_lr}"
        )
    for name, m in net.named_modules():
        if inner.rule == "second_order" and _wrong(m, inner):
            raise FitError(
                f"{name} is a {type(m).__name__} with a scale on the statistics of the samples at hand; vmap gives "
                f"wrong second-order gradients there. Leave engine='vmap' out, freeze BatchNorm (bn='frozen'), or use "
                f"GroupNorm"
            )


def _wrong(m: nn.Module, inner: InnerLoop) -> bool:
    if isinstance(m, nn.LayerNorm):
        return m.elementwise_affine
    batch = isinstance(m, _BatchNorm) and (inner.bn == "task" or m.running_mean is None)
    return bool((batch or isinstance(m, _InstanceNorm)) and m.affine)


def vectorized(loss: MetaLoss) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """``loss`` for several episodes of one size at once: tensors ``[t b ...]`` and ``[t b]`` to losses ``[t]``.

    Raises:
        FitError: as `check_vmap`.
    """
    check_vmap(loss.net, loss.inner)
    (trunk,) = loss.trunks

    def of_one_episode(sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        support = dict(zip(trunk.begins, trunk(sx), strict=True))
        query = dict(zip(trunk.begins, trunk(qx), strict=True))
        losses = [
            _after_steps(claim, loss.inner, support[claim.learner.begin], sy, query[claim.learner.begin], qy)
            for claim in loss.claims
        ]
        return torch.stack(losses).sum()

    def of_all(sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        with loss.norms.ready(), differentiable_attention():
            return torch.vmap(of_one_episode)(sx, sy, qx, qy)

    return of_all


def _after_steps(
    claim: PreparedClaim,
    inner: InnerLoop,
    support: tuple[Tensor, ...],
    support_y: Tensor,
    query: tuple[Tensor, ...],
    query_y: Tensor,
) -> Tensor:
    """`dynext.meta.engines.own_loop` in the form that vmap takes."""
    parameters: dict[str, Tensor] = dict(claim.learner.named_parameters())

    def cost(adapted: dict[str, Tensor]) -> Tensor:
        return loss_of(called_with(claim.learner, {**parameters, **adapted}, support), support_y)

    adapted: dict[str, Tensor] = {name: parameters[name] for name in claim.adapted}
    for _ in range(inner.steps):
        grads = torch.func.grad(cost)(adapted)
        if inner.rule == "first_order":
            grads = {name: grad.detach() for name, grad in grads.items()}
        adapted = {name: adapted[name] - inner.lr * grads[name] for name in adapted}
    return loss_of(called_with(claim.learner, {**parameters, **adapted}, query), query_y)
