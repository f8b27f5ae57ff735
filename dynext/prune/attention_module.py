"""The detachable module: a mask for an exit's feature, made by looking at that feature and at a later one.

Shapes: b samples, c channels, h height, w width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynext.prune.attention_maps import align, of_reduced


class Lookout(nn.Module):
    """``a = sigmoid U(f, f_later)``, of the shape of ``f``: what an exit should look at, for someone who knows better.

    The later feature is brought to the size of ``f`` (`dynext.prune.attention_maps.align`) and to ``hidden`` channels
    by a 1x1 convolution, stands beside ``f`` narrowed to as many, and a convolution of both makes the mask.
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
        # channels before size: the same, since both are linear, and far cheaper on a small late map
        later_bchw = align(self.later(of_reduced(later)), (own_bchw.shape[2], own_bchw.shape[3]))
        mask_bchw = self.mask(torch.cat([self.own(own_bchw), later_bchw], 1))
        return like_tap(mask_bchw, own)


def like_tap(map_bchw: Tensor, tap: Tensor) -> Tensor:
    """The way back from `of_reduced`, for a tap that has been reduced (channels first)."""
    return map_bchw if tap.ndim == 4 else map_bchw[..., 0].transpose(1, 2) if tap.ndim == 3 else map_bchw.view_as(tap)
