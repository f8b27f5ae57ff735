"""The module that is lent to an exit while it learns: from the exit's feature and a later one it computes a mask.

Shapes: b samples, c channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dynext.errors import FitError, line
from dynext.plugins import reference
from dynext.prune.attention_maps import of_reduced, resized

LentModule = Callable[[tuple[int, ...], tuple[int, ...], int], nn.Module]
"""``make(own, later, hidden)``: a module for one exit, from the shape of its reduced feature (without the batch), that
of the later one, and a width. Called ``module(f, f_later)`` it gives a mask in [0, 1] of the shape of ``f``."""


@torch.no_grad()
def lent_module(make: LentModule, own: tuple[int, ...], later: tuple[int, ...], hidden: int) -> nn.Module:
    """A module of ``make``, tried on noise.

    Raises:
        FitError: it is no module, fails, or gives no mask.
    """
    module = make(own, later, hidden)
    told = f"{reference(make)} for features {own} and {later}"
    if not isinstance(module, nn.Module):
        raise FitError(f"{told} gave a {type(module).__name__}; give an nn.Module, called module(f, f_later)")
    if make is AttentionModule:
        return module
    flags = [(part, part.training) for part in module.modules()]
    try:
        mask = module.eval()(torch.randn(2, *own), torch.randn(2, *later))
    except Exception as error:  # code of somebody else's can fail in any way
        raise FitError(f"{told} fails ({line(error)}); it is called module(f, f_later)") from error
    finally:
        for part, training in flags:
            part.training = training
    shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
    if shape != (2, *own):
        raise FitError(f"{told} gives {shape} for two samples; give a mask of the feature's shape, {(2, *own)}")
    if mask.min() < 0 or mask.max() > 1:
        raise FitError(f"{told} gives {mask.min():.3g} to {mask.max():.3g}; give a mask in [0, 1], by a sigmoid say")
    return module


class AttentionModule(nn.Module):
    """``a = sigmoid U(f, f_later)``: a mask of the shape of the exit's feature ``f``, made with a later feature's help.

    Convolutions bring both features to ``hidden`` channels, the later one also to the size of ``f``
    (`dynext.prune.attention_maps.resized`); the two are concatenated, and a further convolution makes the mask.
    """

    def __init__(self, own: tuple[int, ...], later: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        c, h, w = of_reduced(torch.empty(1, *own)).shape[1:]
        kernel = (3 if h > 1 and w > 1 else 1,) * 2
        padding = (kernel[0] // 2,) * 2
        self.own = nn.Conv2d(c, hidden, kernel, 1, padding, bias=False)
        self.later = nn.Conv2d(of_reduced(torch.empty(1, *later)).shape[1], hidden, 1, bias=False)
        self.mask = nn.Sequential(
            nn.BatchNorm2d(2 * hidden),
            nn.ReLU(),
            nn.Conv2d(2 * hidden, c, kernel, 1, padding, bias=False),
            nn.BatchNorm2d(c),
            nn.Sigmoid(),
        )

    def forward(self, own: Tensor, later: Tensor) -> Tensor:
        own_bchw = of_reduced(own)
        # channels before size: both are linear, so the order is free, and this one is far cheaper on a small late map
        later_bchw = resized(self.later(of_reduced(later)), (own_bchw.shape[2], own_bchw.shape[3]))
        mask_bchw = self.mask(torch.cat([self.own(own_bchw), later_bchw], 1))
        return like_tap(mask_bchw, own)


def like_tap(map_bchw: Tensor, tap: Tensor) -> Tensor:
    """The inverse of `of_reduced`: a map in the layout of the reduced ``tap`` it was made from."""
    if tap.ndim == 4:
        return map_bchw
    return map_bchw[..., 0].transpose(1, 2) if tap.ndim == 3 else map_bchw.view_as(tap)
