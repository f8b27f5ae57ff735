"""Which axis is which: samples as ``[n c h w]``, with as many channels as the net expects.

Shapes: n samples, c channels, h height, w width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynext.errors import SourceError
from dynext.types import InputSpec

CHANNELS = {1: "gray", 3: "RGB", 4: "RGB with transparency"}
LUMINANCE = (0.299, 0.587, 0.114)
"""How gray is made of colors, as Pillow does (ITU-R 601-2)."""


def channels_first(x: Tensor, spec: InputSpec, *, torch_made: bool = True) -> tuple[Tensor, str | None]:
    """Samples in any usual layout as ``[n c h w]`` of ``spec.shape``, and what was done about their channels.

    Args:
        torch_made: a tensor, whose channels come first where either could be; of an array nobody knows.

    Raises:
        SourceError: another shape, or one that can be read in two ways.
    """
    if len(spec.shape) != 3:
        if tuple(x.shape[1:]) != tuple(spec.shape):
            raise _misfit(x, spec)
        return x, None
    x = _four_axes(x, spec, torch_made)
    return _with_channels(x, spec)


def _four_axes(x: Tensor, spec: InputSpec, torch_made: bool) -> Tensor:
    c, h, w = spec.shape
    if x.ndim == 4:
        return _four(x, spec, torch_made)
    if x.ndim == 3 and tuple(x.shape) in ((c, h, w), (h, w, c)) and (c != 1 or x.shape[0] != 1):
        raise SourceError(f"an array of shape {tuple(x.shape)} is one image; give some of them, x[None] for one alone")
    if x.ndim == 3 and tuple(x.shape[1:]) == (h, w):
        return x[:, None]
    if x.ndim == 2 and x.shape[1] == c * h * w:
        if c > 1 and h * w > 1:
            raise SourceError(
                f"samples are vectors of {x.shape[1]} numbers, and it cannot be told whether channels come first in "
                f"them; give x.reshape(-1, {c}, {h}, {w}), or x.reshape(-1, {h}, {w}, {c}).transpose(0, 3, 1, 2)"
            )
        return x.reshape(-1, c, h, w)
    raise _misfit(x, spec)


def _four(x: Tensor, spec: InputSpec, torch_made: bool) -> Tensor:
    c, h, w = spec.shape
    known = {c, *CHANNELS} if c in (1, 3) else {c}
    first = tuple(x.shape[2:]) == (h, w) and x.shape[1] in known
    last = tuple(x.shape[1:3]) == (h, w) and x.shape[3] in known
    if first and last and not torch_made:
        raise SourceError(
            f"an array of shape {tuple(x.shape)} may have its channels first or last; give a tensor with channels first"
            f": torch.from_numpy(x), or torch.from_numpy(x).permute(0, 3, 1, 2) if they come last"
        )
    if first:
        return x
    if last:
        return x.permute(0, 3, 1, 2)
    raise _misfit(x, spec)


def _misfit(x: Tensor, spec: InputSpec) -> SourceError:
    return SourceError(
        f"samples have shape {tuple(x.shape[1:])}, the model expects {tuple(spec.shape)}; resize them or change the "
        f"channels (image files and PIL images are fitted on their own)"
    )


def _with_channels(x: Tensor, spec: InputSpec) -> tuple[Tensor, str | None]:
    """Gray from colors and colors from gray, as for image files."""
    given, wanted = x.shape[1], spec.shape[0]
    if given == wanted:
        return x, None
    note = f"samples are {CHANNELS[given]}, the model expects {CHANNELS[wanted]}; they are converted"
    x = x[:, :3]
    if x.shape[1] == wanted:
        return x, note
    if wanted == 3:
        return x.expand(-1, 3, -1, -1), note  # a view: no pixel is copied
    gray = (x.float() * torch.tensor(LUMINANCE, dtype=torch.float32).view(3, 1, 1)).sum(1, keepdim=True)
    return (gray if x.is_floating_point() else gray.round().to(x.dtype)), note
