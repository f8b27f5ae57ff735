"""How procedural samples look: a few parameters, some named settings, random ones.

Lengths are shares of half the short side, amplitudes shares of the pixel range.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator

from dynext.errors import SourceError

Layout = Literal["leaves", "objects"]
Ground = Literal["texture", "dark", "light"]
_LAYOUTS: tuple[Layout, ...] = ("leaves", "objects")
_GROUNDS: tuple[Ground, ...] = ("texture", "dark", "light")


@dataclass(frozen=True, kw_only=True)
class Style:
    """Parameters of a procedural picture."""

    layout: Layout = "leaves"
    """Shapes all over the picture, or shapes that form one thing in its middle."""
    ground: Ground = "texture"
    """Pink noise, or even: near black, near white."""
    count: int = 14
    """Shapes in a picture; an object has between one and this many."""
    radius: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest half-axis of a shape (of an object's body)."""
    aspect: tuple[float, float] = (0.35, 1.0)
    """Shortest and longest other half-axis, as a share of the first."""
    level: float = 0.5
    """Mean brightness of the shapes."""
    contrast: float = 0.2
    """Deviation of the shapes' colors, and of a textured ground."""
    saturation: float = 0.25
    """0 is gray, 1 is independent channels."""
    exponent: float = 1.75
    """The textures' amplitude falls as 1/frequency to this power."""
    texture: float = 0.1
    """Mean deviation of the texture on a shape."""
    shading: float = 0.15
    """Deviation of a shape's brightness slope."""
    mirror: float = 0.0
    """Chance that a picture's shapes are symmetric about an upright axis."""

    def __post_init__(self) -> None:
        small, large = self.radius
        if not 0 < small <= large:
            raise SourceError(f"radius {self.radius}; give (smallest, largest), both positive")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise SourceError(f"aspect {self.aspect}; give (smallest, largest), both positive")
        if self.count < 1:
            raise SourceError(f"count {self.count}; a style needs at least one shape")
        if self.layout not in _LAYOUTS or self.ground not in _GROUNDS:
            raise SourceError(
                f"layout {self.layout!r} on ground {self.ground!r}; "
                f"layouts are {', '.join(_LAYOUTS)}, grounds {', '.join(_GROUNDS)}"
            )


LEAVES = Style()
OBJECTS = Style(
    layout="objects", ground="dark", count=6, radius=(0.5, 1.0), level=0.55, contrast=0.22, texture=0.12, mirror=0.6
)
PRESETS: dict[str, Style] = {
    "leaves": LEAVES,
    "soft leaves": replace(LEAVES, contrast=0.12, saturation=0.15, exponent=2.2, radius=(0.3, 1.2)),
    "vivid leaves": replace(LEAVES, contrast=0.25, saturation=0.5, exponent=1.5, radius=(0.1, 1.0)),
    "objects on dark": OBJECTS,
    "objects on light": replace(OBJECTS, ground="light", level=0.45),
    "objects on texture": replace(OBJECTS, ground="texture", level=0.5, contrast=0.18),
    "strokes on dark": replace(
        OBJECTS, radius=(0.4, 0.8), aspect=(0.12, 0.25), level=0.95, contrast=0.1, texture=0.02, shading=0.05
    ),
}
"""Named styles: natural pictures, goods on a shelf or on paper, handwriting."""


def random_style(draw: Generator) -> Style:
    """Any style, layout and ground included."""
    layout = _LAYOUTS[_integer(0, 1, draw)]
    small = _number(0.08, 0.5, draw)
    return Style(
        layout=layout,
        ground="texture" if layout == "leaves" else _GROUNDS[_integer(0, 2, draw)],
        count=_integer(8, 20, draw) if layout == "leaves" else _integer(3, 8, draw),
        radius=(small, small + _number(0.2, 0.8, draw)),
        aspect=(_number(0.1, 0.5, draw), 1.0),
        level=_number(0.35, 0.7, draw),
        contrast=_number(0.08, 0.3, draw),
        saturation=_number(0.0, 0.6, draw),
        exponent=_number(1.0, 2.5, draw),
        texture=_number(0.02, 0.25, draw),
        shading=_number(0.05, 0.3, draw),
        mirror=_number(0.0, 0.8, draw),
    )


def varied(style: Style, draw: Generator) -> Style:
    """``style`` with its amplitudes and lengths changed by up to a third, its levels by up to a tenth."""

    def scaled(value: float) -> float:
        return round(value * 1.33 ** _number(-1.0, 1.0, draw), 4)

    small, large = style.radius
    new_small = scaled(small)
    return replace(
        style,
        radius=(new_small, max(scaled(large), new_small)),
        level=min(max(style.level + _number(-0.1, 0.1, draw), 0.05), 0.95),
        contrast=scaled(style.contrast),
        saturation=min(scaled(style.saturation), 1.0),
        exponent=scaled(style.exponent),
        texture=scaled(style.texture),
        shading=scaled(style.shading),
    )


def _number(low: float, high: float, draw: Generator) -> float:
    return round(low + (high - low) * float(torch.rand((), generator=draw)), 4)


def _integer(low: int, high: int, draw: Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=draw))
