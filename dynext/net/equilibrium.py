"""Every exit's logits in one pass, with the gradients that reach the trunk in balance.

Shapes: b samples, k classes. There are e exits, numbered from 0, the last is the full net.
"""

from __future__ import annotations

from torch import Tensor

from dynext.graph.stage import LiveTensors
from dynext.net.dynamic_net import DynamicNet


def rescale_gradient(x: Tensor, factor: float) -> Tensor:
    """``x`` itself, whose gradient is multiplied by ``factor`` on its way back, in a second backward pass too.

    Inside nested ``torch.func`` transforms this holds for the innermost gradient alone.

    >>> import torch
    >>> x = torch.ones(1, requires_grad=True)
    >>> (3 * rescale_gradient(x, 0.5)).backward()
    >>> x.grad
    tensor([1.5000])
    """
    same = x.view_as(x)  # a graph node of its own: the gradient of what else reads x is not rescaled
    if same.requires_grad:
        same.register_hook(lambda gradient: gradient * factor)
    return same


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
    live: LiveTensors = (x,)
    exit_after = {s: e for e, s in enumerate(net.exit_stages[:-1])}
    logits_e: list[Tensor] = []
    taps: list[Tensor] = []
    for s, stage in enumerate(net.staged.stages):
        live = stage(*live)
        if s < len(net.staged.stages) - 1:
            taps.append(live[stage.tap])
        e = exit_after.get(s)
        if e is None:
            continue
        num_behind = net.num_exits - e
        live = _rescaled(live, 1 / num_behind) if balance else live
        logits_e.append(net.exits[e](live[stage.tap]))
        live = _rescaled(live, num_behind - 1) if balance else live
    return [*logits_e, live[0]], taps


def _rescaled(live: LiveTensors, factor: float) -> LiveTensors:
    return tuple(rescale_gradient(tensor, factor) for tensor in live)
