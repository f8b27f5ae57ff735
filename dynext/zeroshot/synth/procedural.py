"""Procedural samples: noise, dead leaves and simple objects, pure functions of a generator and a few parameters.

Shapes: n samples, c channels, h height, w width. Pixels are float in [0, 1]; a picture spans -1 to 1 along its short
side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from dynext.zeroshot.synth.styles import LEAVES, OBJECTS, Style


def gaussian(n: int, shape: tuple[int, ...], draw: Generator) -> Tensor:
    """Independent standard normal values ``[n c h w]``: what a model expects, not pixels."""
    return torch.randn(n, *shape, generator=draw)


def pink(n: int, shape: tuple[int, ...], draw: Generator, style: Style = LEAVES) -> Tensor:
    """Noise ``[n c h w]`` with an amplitude of 1/frequency^exponent, around one random color a sample."""
    channels, h, w = shape
    field = _noise(n, 1, (h, w), draw, style.exponent)
    if channels > 1 and style.saturation:
        field = _tinted(field, _noise(n, channels, (h, w), draw, style.exponent), style.saturation)
    level = style.level + _colors(n, channels, draw, style)[:, :, None, None]
    return (level + style.contrast * field).clamp_(0, 1).expand(n, channels, h, w)


def leaves(n: int, shape: tuple[int, ...], draw: Generator, style: Style = LEAVES) -> Tensor:
    """Dead leaves ``[n c h w]``: shaded, textured ellipses and rectangles that cover each other, anywhere.

    Source: Lee, Mumford and Huang, IJCV 2001 (radii follow r^-3); as a training set Baradad et al., NeurIPS 2021,
    arXiv:2106.05963. Ours adds texture and shading.
    """
    picture = _Picture.start(n, shape, draw, style)
    for k in range(style.count):
        picture.paint(k, _anywhere(picture, draw), picture.colors(draw), draw)
    return picture.pixels.clamp_(0, 1)


def objects(n: int, shape: tuple[int, ...], draw: Generator, style: Style = OBJECTS) -> Tensor:
    """One thing in the middle of each picture ``[n c h w]``: a body with smaller shapes on it, often symmetric.

    A part is colored like the body (half of them), differently (three in ten), or like the ground: a hole.
    """
    picture = _Picture.start(n, shape, draw, style)
    ground = picture.pixels.mean((-2, -1))
    parts_n = torch.randint(1, style.count + 1, (n,), generator=draw)
    body, color = _body(picture, draw), picture.colors(draw)
    for k in range(style.count):
        kind = torch.rand(n, 1, generator=draw)
        part = torch.where(kind < 0.5, color, torch.where(kind < 0.8, picture.colors(draw), ground))
        shapes, fill = (body, color) if k == 0 else (_attached(picture, body, draw), part)
        picture.paint(k, shapes, fill, draw, shown_n=parts_n > k)
    return picture.pixels.clamp_(0, 1)


def paint(n: int, shape: tuple[int, ...], draw: Generator, style: Style) -> Tensor:
    """`leaves` or `objects`, as ``style.layout`` says."""
    return (leaves if style.layout == "leaves" else objects)(n, shape, draw, style)


@dataclass(frozen=True, kw_only=True)
class _Shapes:
    """One ellipse or rectangle a sample: center, half-axes, angle, all ``[n]``."""

    x: Tensor
    y: Tensor
    long: Tensor
    wide: Tensor
    angle: Tensor
    round: Tensor


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """Samples being painted: pixels ``[n c h w]``, coordinates ``y [1 h]`` and ``x [n w]``, textures ``[n 2 h w]``."""

    pixels: Tensor
    x: Tensor
    y: Tensor
    textures: Tensor
    style: Style

    @classmethod
    def start(cls, n: int, shape: tuple[int, ...], draw: Generator, style: Style) -> _Picture:
        h, w = shape[1:]
        half = min(h, w) / 2
        x_w = (torch.arange(w) + 0.5 - w / 2) / half
        mirrored = torch.rand(n, 1, generator=draw) < style.mirror
        return cls(
            pixels=_ground(n, shape, draw, style),
            # Painting on |x| makes a sample symmetric at no cost.
            x=torch.where(mirrored, x_w.abs(), x_w),
            y=((torch.arange(h) + 0.5 - h / 2) / half)[None],
            textures=_noise(n, 2, (h, w), draw, style.exponent),
            style=style,
        )

    def colors(self, draw: Generator) -> Tensor:
        n, channels = self.pixels.shape[:2]
        return self.style.level + _colors(n, channels, draw, self.style)

    def plane(self, a_n: Tensor, b_n: Tensor, c_n: Tensor) -> Tensor:
        """``a x + b y + c`` over the grid ``[n h w]``: sums of a sample and a column, which is what makes this fast."""
        return (b_n[:, None] * self.y + c_n[:, None])[:, :, None] + (a_n[:, None] * self.x)[:, None]

    def paint(self, k: int, shapes: _Shapes, color_nc: Tensor, draw: Generator, shown_n: Tensor | None = None) -> None:
        """Cover what lies below with the ``k``-th shape of each sample (only those shown), edges one pixel soft."""
        n = len(self.pixels)
        mask = self._mask(shapes)
        if shown_n is not None:
            mask *= shown_n[:, None, None]
        slope_x, slope_y = torch.randn(2, n, generator=draw) * self.style.shading
        value = self.plane(slope_x, slope_y, -(slope_x * shapes.x + slope_y * shapes.y))
        amplitude = torch.rand(n, generator=draw) * 2 * self.style.texture
        # Rolled along the samples: each shape wears another sample's texture, without a new one being made.
        value += amplitude[:, None, None] * self.textures[:, k % 2].roll(k // 2, 0)
        for c in range(self.pixels.shape[1]):
            self.pixels[:, c].lerp_(value + color_nc[:, c, None, None], mask)

    def _mask(self, shapes: _Shapes) -> Tensor:
        cos, sin = shapes.angle.cos(), shapes.angle.sin()
        along, across = cos * shapes.x + sin * shapes.y, cos * shapes.y - sin * shapes.x
        u = self.plane(cos / shapes.long, sin / shapes.long, -along / shapes.long).abs_()
        v = self.plane(-sin / shapes.wide, cos / shapes.wide, -across / shapes.wide).abs_()
        distance = torch.where(shapes.round[:, None, None], torch.hypot(u, v), torch.maximum(u, v))
        pixels_wide = shapes.wide * min(self.pixels.shape[-2:]) / 2
        return distance.neg_().add_(1).mul_(pixels_wide[:, None, None]).add_(0.5).clamp_(0, 1)


def _anywhere(picture: _Picture, draw: Generator) -> _Shapes:
    n, _, h, w = picture.pixels.shape
    small, large = picture.style.radius
    # The inverse of the distribution function of r^-3 between the two radii.
    long = (small**-2 + torch.rand(n, generator=draw) * (large**-2 - small**-2)) ** -0.5
    return _Shapes(
        x=_uniform(n, -w / min(h, w), w / min(h, w), draw),
        y=_uniform(n, -h / min(h, w), h / min(h, w), draw),
        long=long,
        wide=long * _uniform(n, *picture.style.aspect, draw),
        angle=_uniform(n, 0.0, math.pi, draw),
        round=torch.rand(n, generator=draw) < 0.5,
    )


def _body(picture: _Picture, draw: Generator) -> _Shapes:
    n = len(picture.pixels)
    long = _uniform(n, *picture.style.radius, draw)
    tilt = torch.where(torch.rand(n, generator=draw) < 0.3, _uniform(n, -0.8, 0.8, draw), 0.0)
    return _Shapes(
        x=_uniform(n, -0.1, 0.1, draw),
        y=_uniform(n, -0.1, 0.1, draw),
        long=long,
        wide=long * _uniform(n, *picture.style.aspect, draw),
        angle=_quarter_turn(n, draw) + tilt,
        round=torch.rand(n, generator=draw) < 0.4,
    )


def _attached(picture: _Picture, body: _Shapes, draw: Generator) -> _Shapes:
    """Shapes centered within or at the edge of the body, half of them long and thin (limbs)."""
    n = len(body.x)
    direction, reach = _uniform(n, 0.0, 2 * math.pi, draw), _uniform(n, 0.2, 1.1, draw)
    along, across = reach * body.long * direction.cos(), reach * body.wide * direction.sin()
    long = body.long * _uniform(n, 0.25, 0.9, draw)
    thin = torch.where(torch.rand(n, generator=draw) < 0.5, 0.35, 1.0)
    return _Shapes(
        x=body.x + body.angle.cos() * along - body.angle.sin() * across,
        y=body.y + body.angle.sin() * along + body.angle.cos() * across,
        long=long,
        wide=(long * _uniform(n, *picture.style.aspect, draw) * thin).clamp_min(0.05),
        angle=_quarter_turn(n, draw) + _uniform(n, -0.4, 0.4, draw),
        round=torch.rand(n, generator=draw) < 0.4,
    )


def _quarter_turn(n: int, draw: Generator) -> Tensor:
    """Lying or upright, ``[n]`` radians: things are built along the axes more often than across them."""
    return torch.randint(2, (n,), generator=draw) * (math.pi / 2)


def _ground(n: int, shape: tuple[int, ...], draw: Generator, style: Style) -> Tensor:
    if style.ground == "texture":
        return pink(n, shape, draw, style).contiguous()
    # Half of even grounds are exactly black or white, as cut-out or scanned pictures are.
    shade = (torch.rand(n, 1, 1, 1, generator=draw) - 0.5).clamp_min(0) * 0.3
    return (shade if style.ground == "dark" else 1 - shade).repeat(1, *shape)


def _noise(n: int, channels: int, size: tuple[int, int], draw: Generator, exponent: float) -> Tensor:
    """Fields ``[n channels h w]`` of mean 0 and deviation 1 whose amplitude falls as 1/frequency^exponent."""
    h, w = size
    gain_hw = torch.hypot(torch.fft.fftfreq(h)[:, None] * h, torch.fft.rfftfreq(w)[None] * w).pow(-exponent)
    gain_hw[0, 0] = 0
    white = torch.randn(n, channels, h, w, generator=draw)
    field = torch.fft.irfft2(torch.fft.rfft2(white) * gain_hw, s=size)
    if h * w == 1:  # a pixel alone deviates from nothing
        return field
    return field / field.std((-2, -1), keepdim=True).clamp_min(1e-6)


def _colors(n: int, channels: int, draw: Generator, style: Style) -> Tensor:
    """Deviations ``[n c]`` from the style's level: a brightness a sample, tinted."""
    gray = torch.randn(n, 1, generator=draw)
    tint = torch.randn(n, channels, generator=draw)
    return style.contrast * _tinted(gray, tint, style.saturation if channels > 1 else 0.0)


def _tinted(gray: Tensor, tint: Tensor, saturation: float) -> Tensor:
    """A mixture of two standard normals that stays one."""
    return ((1 - saturation) * gray + saturation * tint) / math.hypot(1 - saturation, saturation)


def _uniform(n: int, low: float, high: float, draw: Generator) -> Tensor:
    return torch.rand(n, generator=draw) * (high - low) + low
