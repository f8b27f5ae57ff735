"""Which places of a map decide what an exit answers: class activation maps, for pictures.

Shapes: b samples, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynext.errors import PolicyError
from dynext.graph.stage import walk
from dynext.modules.modes import evaluating
from dynext.net.dynamic_net import DynamicNet
from dynext.usual_modes import in_usual_modes


@in_usual_modes
def class_activation(net: DynamicNet, x: Tensor, exit: int, *, target_b: Tensor | None = None) -> Tensor:
    """How much each place of the map before ``exit`` speaks for a class ``[b h w]``, 0 or more.

    The map's channels are weighed by the class's mean gradient and summed, and what speaks against it is left out. For
    an exit that is linear in the map's averages this is the class activation map, divided by the number of places. For
    the last exit (-1) it is the map that the last stage is given.

    Args:
        exit: its number from 0; -1 for the full net.
        target_b: the class of each sample; by default what the exit answers.

    Raises:
        PolicyError: no such exit, or one before which there is no map ``[c h w]``.

    Source: Selvaraju et al., ICCV 2017, arXiv:1610.02391 (Grad-CAM); Zhou et al., CVPR 2016, arXiv:1512.04150 (CAM).
    """
    if not -net.num_exits <= exit < net.num_exits:
        raise PolicyError(f"exit {exit} of a net with {net.num_exits}; give 0 to {net.num_exits - 1}, or -1")
    e = exit % net.num_exits
    stages = list(net.staged.stages)
    after = net.exits[e].after if e < len(net.exits) else len(stages) - 2
    with evaluating(net), torch.no_grad():
        *_, (stage, live) = walk(stages[: after + 1], x.to(next(net.parameters())))
    tap = stage.tap
    if live[tap].ndim != 4:
        raise PolicyError(f"exit {exit} taps a tensor of shape {tuple(live[tap].shape[1:])}; a map has [c h w]")
    feature = live[tap].clone().requires_grad_(True)
    with evaluating(net), torch.enable_grad():
        if e < len(net.exits):
            logits = net.exits[e](feature)
        else:
            (logits,) = stages[-1](*live[:tap], feature, *live[tap + 1 :])
        target_b = logits.argmax(1) if target_b is None else target_b
        (gradient,) = torch.autograd.grad(logits.gather(1, target_b[:, None]).sum(), feature)
    return (gradient.mean((2, 3), keepdim=True) * feature).sum(1).relu().detach()
