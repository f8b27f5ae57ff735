"""Patches of one natural image of the user's: crops at many scales, turned, mirrored, recolored.

Shapes: n samples, c channels, h height, w width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from dynext.errors import SourceError
from dynext.types import InputSpec
from dynext.zeroshot.synth.method import Sampler, samples_per_chunk

SMALLEST_LEVEL = 8


@dataclass(frozen=True, kw_only=True)
class Patching:
    """How patches are cut. Lengths are shares of the longest crop that fits the image."""

    scale: tuple[float, float] = (0.1, 0.9)
    """Shortest and longest crop; none is cut smaller than two thirds of the sample's own pixels."""
    turn: float = 35.0
    """Largest rotation either way, in degrees."""
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    """Largest change of each, as a share."""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise SourceError(f"scale={self.scale}; give (shortest, longest), shares within (0, 1]")
        if min(self.turn, self.brightness, self.contrast, self.saturation) < 0:
            raise SourceError(f"{self}; changes are given as 0 or more")


DEFAULT = Patching()


def patches(
    teacher: nn.Module,
    spec: InputSpec,
    seed: int,
    *,
    image: Path | str | np.ndarray | Tensor | None = None,
    settings: Patching = DEFAULT,
) -> Sampler:
    """Samples cut from ``image``: a file, or pixels ``[h w]``, ``[h w c]`` or ``[c h w]``, uint8 or float in [0, 1].

    A large picture full of different things serves best. Gray nets see it in gray.

    Raises:
        SourceError: no image, none that can be read, or one too small to cut samples from.

    Source: Asano & Saeed, ICLR 2023, arXiv:2112.00725. Ours cuts anew from the whole image for each sample, where
    theirs makes its patches in two steps and augments them again in training.
    """
    if image is None:
        raise SourceError(
            "method patches cuts samples from one image of yours; give image=, a file or an array (to convert with "
            "them: synthesize a bank first and give it as distill_on=, or --bank)"
        )
    levels = _levels(_pixels(image, spec), spec)
    return Sampler(
        sample=lambda count, draw: spec.normalize(cut(levels, count, spec, draw, settings)),
        per_chunk=samples_per_chunk(spec.shape),
    )


def _pixels(image: Path | str | np.ndarray | Tensor, spec: InputSpec) -> Tensor:
    """``[c h w]`` float in [0, 1], gray or color as the spec asks."""
    raw = _read(image) if isinstance(image, str | Path) else torch.as_tensor(image).detach().cpu()
    if raw.ndim == 2:
        raw = raw[None]
    elif raw.ndim == 3 and raw.shape[0] not in (1, 3) and raw.shape[-1] in (1, 3):
        raw = raw.permute(2, 0, 1)
    channels = spec.shape[0]
    if raw.ndim != 3 or raw.shape[0] not in (1, 3) or channels not in (1, 3):
        raise SourceError(
            f"an image of shape {list(raw.shape)} for samples of {channels} channels; give [h w], [h w 3] or [3 h w]"
        )
    pixels = raw.float() / 255 if raw.dtype == torch.uint8 else raw.float()
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise SourceError(f"pixels between {pixels.min():g} and {pixels.max():g}; give uint8, or float in [0, 1]")
    if channels == 1 and len(pixels) == 3:
        return _gray(pixels[None])[0]
    return pixels.expand(channels, -1, -1).contiguous()


def _read(file: str | Path) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as opened:
            # PIL clips 16 bits to 8 where it should scale them.
            deep = opened.mode.startswith("I;16")
            eight = Image.fromarray((np.asarray(opened) // 257).astype(np.uint8)) if deep else opened
            return torch.from_numpy(np.array(eight.convert("RGB")))
    except (UnidentifiedImageError, OSError) as error:
        raise SourceError(f"{file} is no image that can be read ({error})") from error


def _levels(pixels: Tensor, spec: InputSpec) -> list[Tensor]:
    """The image ``[1 c h w]``, and halves of it while they last: a crop is taken where it need not shrink much."""
    _, height, width = spec.shape
    if min(pixels.shape[-2:]) < 2 * max(height, width):
        raise SourceError(
            f"the image has {pixels.shape[-1]}x{pixels.shape[-2]} pixels, samples {width}x{height}; "
            f"give an image with at least twice as many on each side"
        )
    levels = [pixels[None]]
    while min(levels[-1].shape[-2:]) >= 2 * SMALLEST_LEVEL:
        levels.append(F.avg_pool2d(levels[-1], 2))
    return levels


def cut(levels: list[Tensor], n: int, spec: InputSpec, draw: Generator, config: Patching) -> Tensor:
    """Samples ``[n c h w]`` in [0, 1]: a place, a size, an angle and colors of its own for each."""
    _, height, width = spec.shape
    image_h, image_w = levels[0].shape[-2:]
    angle_n = (torch.rand(n, generator=draw) * 2 - 1) * math.radians(config.turn)
    cos, sin = angle_n.cos().abs(), angle_n.sin().abs()
    # The box around a turned sample of one pixel's size; what fits the image bounds the crop's size in pixels a pixel.
    box_w, box_h = width * cos + height * sin, width * sin + height * cos
    longest_n = torch.minimum(image_w / box_w, image_h / box_h)
    low, high = (math.log(share) for share in config.scale)
    zoom_n = longest_n * (low + torch.rand(n, generator=draw) * (high - low)).exp()
    zoom_n = torch.minimum(zoom_n.clamp_min(2 / 3), longest_n)
    place_2n = torch.rand(2, n, generator=draw)
    x_n = zoom_n * box_w / 2 + place_2n[0] * (image_w - zoom_n * box_w)
    y_n = zoom_n * box_h / 2 + place_2n[1] * (image_h - zoom_n * box_h)
    mirror_n = (torch.rand(n, generator=draw) < 0.5) * -2.0 + 1
    grid = _grid(spec, x_n, y_n, zoom_n, angle_n, mirror_n, (image_h, image_w))
    level_n = zoom_n.log2().floor().clamp(0, len(levels) - 1).long()
    rows = torch.empty(n, *spec.shape)
    for level in level_n.unique().tolist():
        here = (level_n == level).nonzero()[:, 0]
        source = levels[level].expand(len(here), -1, -1, -1)
        rows[here] = F.grid_sample(source, grid[here], padding_mode="border", align_corners=False)
    return _recolored(rows, draw, config)


def _grid(
    spec: InputSpec, x_n: Tensor, y_n: Tensor, zoom_n: Tensor, angle_n: Tensor, mirror_n: Tensor, size: tuple[int, int]
) -> Tensor:
    """Where each pixel of each sample is looked up ``[n h w 2]``, the image spanning -1 to 1 both ways."""
    _, height, width = spec.shape
    across_w = torch.arange(width) - (width - 1) / 2
    down_h = torch.arange(height) - (height - 1) / 2
    across = mirror_n[:, None, None] * across_w
    down = down_h[:, None].expand(height, width)
    cos, sin = angle_n.cos()[:, None, None], angle_n.sin()[:, None, None]
    x = x_n[:, None, None] + zoom_n[:, None, None] * (cos * across - sin * down)
    y = y_n[:, None, None] + zoom_n[:, None, None] * (sin * across + cos * down)
    return torch.stack([2 * x / size[1] - 1, 2 * y / size[0] - 1], dim=-1)


def _recolored(rows: Tensor, draw: Generator, config: Patching) -> Tensor:
    n = len(rows)

    def factor(most: float) -> Tensor:
        return 1 + most * (torch.rand(n, 1, 1, 1, generator=draw) * 2 - 1)

    rows = rows * factor(config.brightness)
    mean = rows.mean((1, 2, 3), keepdim=True)
    rows = mean + (rows - mean) * factor(config.contrast)
    if rows.shape[1] == 3:
        gray = _gray(rows)
        rows = gray + (rows - gray) * factor(config.saturation)
    return rows.clamp_(0, 1)


def _gray(rows: Tensor) -> Tensor:
    """``[n 3 h w]`` to ``[n 1 h w]``, as television does."""
    return (rows * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
