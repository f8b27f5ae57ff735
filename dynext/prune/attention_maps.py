"""Attention maps: where in its feature map a stage is active, and where the net's answer depends on it.

Every tap is brought to the layout ``[b c h w]``: channels are moved to the front, tokens ``[b t d]`` become a strip of
``t`` by 1, a vector ``[b d]`` becomes a single position.

Shapes: b samples, c channels, h height, w width, t tokens, d features, k classes. There are e exits, the last is the
net.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dynext.errors import FitError
from dynext.modules.exits import channels_last
from dynext.modules.modes import evaluating
from dynext.net.dynamic_net import DynamicNet
from dynext.usual_modes import in_usual_modes


def as_map(tap: Tensor) -> Tensor:
    """A tap ``[b ...]`` of any layout as a feature map ``[b c h w]``."""
    last = tap.ndim == 4 and channels_last(tuple(tap.shape[1:]))
    return of_reduced(tap.permute(0, 3, 1, 2) if last else tap)


def of_reduced(reduced: Tensor) -> Tensor:
    """What `Exit.reduce` gave, whose channels stand first already, as a feature map ``[b c h w]``."""
    if reduced.ndim == 4:
        return reduced
    return reduced.transpose(1, 2)[..., None] if reduced.ndim == 3 else reduced.flatten(1)[..., None, None]


@in_usual_modes
def attention_map(feature_bchw: Tensor, power: float = 2.0) -> Tensor:
    """Where a feature map is active ``[b h w]``: the mean over channels of ``|x|^power``.

    >>> attention_map(torch.tensor([[[[1.0, 0.0]], [[3.0, 0.0]]]])).tolist()
    [[[5.0, 0.0]]]

    Source: Zagoruyko & Komodakis, ICLR 2017, arXiv:1612.03928, section 3.1 (there the sum, which `normalized` makes
    the same).
    """
    return feature_bchw.abs().pow(power).mean(1)


def normalized(map_bhw: Tensor) -> Tensor:
    """A map as a vector of length 1, ``[b hw]``; one that is zero everywhere stays so.

    Source: Zagoruyko & Komodakis, ICLR 2017, arXiv:1612.03928, eq. 2.
    """
    return F.normalize(map_bhw.flatten(1), dim=1)


def spatial_softmax(map_bhw: Tensor) -> Tensor:
    """A map as a distribution over its positions ``[b hw]``.

    Source: SAD, Hou et al., ICCV 2019, arXiv:1908.00821, section 3.1.
    """
    return map_bhw.flatten(1).softmax(1)


def resized(feature_bchw: Tensor, size: tuple[int, int]) -> Tensor:
    """A feature map at another map's ``size`` (height, width), to compare the two or to put one beside the other.

    Grids are interpolated bilinearly. Where one of the two is a strip of tokens or a single position, they share no
    grid, and every position gets the mean. Channels are left alone.
    """
    own = tuple(feature_bchw.shape[2:])
    if own == size:
        return feature_bchw
    if 1 in own or 1 in size:
        return feature_bchw.mean((2, 3), keepdim=True).expand(-1, -1, *size)
    return F.interpolate(feature_bchw, size=size, mode="bilinear", align_corners=False)


@in_usual_modes
@torch.no_grad()
def activation_maps(net: DynamicNet, x: Tensor) -> list[Tensor]:
    """Where each exit's tap is active on samples ``x [b ...]``: e - 1 maps ``[b h w]``, each the tap's own size."""
    with evaluating(net):
        taps, _ = net.taps(x)
    return [attention_map(as_map(tap)) for tap in taps]


@in_usual_modes
def gradient_maps(net: DynamicNet, x: Tensor, y: Tensor | None = None) -> list[Tensor]:
    """What the net's answer depends on: ``|d logit_y / d tap|``, mean over channels, one map ``[b h w]`` a tap.

    No gradient is left on any parameter, and ``x`` need not require one.

    Args:
        y: classes ``[b]``; the net's own answers without it.

    Raises:
        FitError: a net in 8 bits, whose layers have no gradient.

    Source: Zagoruyko & Komodakis, ICLR 2017, arXiv:1612.03928, section 3.2 (of the loss; ours, of a logit, needs no
    label).
    """
    if net.int8 is not None:
        raise FitError("a net in 8 bits has no gradients; give the float one")
    with evaluating(net), torch.enable_grad():
        # a copy, since the caller's may be an inference tensor or a leaf without a gradient
        taps, final_bk = net.taps(x.detach().clone().requires_grad_())
        y_b = final_bk.argmax(-1) if y is None else y
        chosen = final_bk.gather(1, y_b[:, None]).sum()
        gradients = torch.autograd.grad(chosen, taps, allow_unused=True)
    slopes = [torch.zeros_like(tap) if g is None else g for tap, g in zip(taps, gradients, strict=True)]
    return [attention_map(as_map(slope), power=1.0) for slope in slopes]
