"""Every exit's logits in one pass, with the gradients that reach the trunk in balance.

Shapes: b samples, k classes. There are e exits, numbered from 0, the last is the full net.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynext.net.dynamic_net import DynamicNet


class _Rescaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


def rescale_gradient(x: Tensor, factor: float) -> Tensor:
    """``x`` itself, whose gradient is multiplied by ``factor`` on its way back.

    >>> x = torch.ones(1, requires_grad=True)
    >>> (3 * rescale_gradient(x, 0.5)).backward()
    >>> x.grad
    tensor([1.5000])
    """
    return _Rescaled.apply(x, factor)


def logits_in_equilibrium(net: DynamicNet, x: Tensor, *, balance: bool = True) -> tuple[list[Tensor], list[Tensor]]:
    """All exits' logits (e tensors ``[b k]``), and what stands at the tap after each stage but the last.

    At exit i, 1/(e - i) of the gradient that its head sends back and (e - i - 1)/(e - i) of the one from further on go
    on into the trunk. Each stage then gets the *mean* over the exits behind it of their losses' gradients, where it
    would get their sum, and many exits do not tear at the early stages; heads get their whole gradient.

    Args:
        balance: ``False`` leaves the gradients as they are.

    Source: gradient equilibrium, Li et al., ICCV 2019, arXiv:1908.06294, section 3.2. Ours rescales every tensor that
    is live at the cut, so that nets with long skip connections get the exact mean too.
    """
    live: tuple[Tensor, ...] = (x,)
    standing = {int(exit.after): e for e, exit in enumerate(net.exits)}
    logits_e: list[Tensor] = []
    taps: list[Tensor] = []
    for s, stage in enumerate(net.staged.stages):
        live = stage(*live)
        if s < len(net.staged.stages) - 1:
            taps.append(live[stage.tap])
        e = standing.get(s)
        if e is None:
            continue
        behind = net.num_exits - e
        live = _all(live, 1 / behind) if balance else live
        logits_e.append(net.exits[e](live[stage.tap]))
        live = _all(live, behind - 1) if balance else live
    return [*logits_e, live[0]], taps


def _all(live: tuple[Tensor, ...], factor: float) -> tuple[Tensor, ...]:
    return tuple(rescale_gradient(t, factor) if t.requires_grad else t for t in live)
