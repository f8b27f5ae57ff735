"""What numbers stand for: pixels of 8 bits, of [0, 1] or of [0, 255], or what a transform has normalized already.

Whatever is less than certain is refused or said: pixels that are normalized twice make every exit unsure, and nobody
sees why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dynext.errors import SourceError
from dynext.types import InputSpec

Kind = Literal["bytes", "unit", "white", "normalized"]
"""Integers from 0 to 255, floats in [0, 1], floats in [0, 255], floats as the net expects them."""

SLACK = 0.1
"""As a share of white: resizing by cubic splines goes that far beyond black and white."""
ROUNDING = 1e-3
"""How far floats may be off without a word."""
BRIGHT = 127
"""Some pixel of a few images is brighter; where none is, 255 is hardly what white is called."""
CHUNK = 1024
"""Samples that are looked at at once, so that a mapped file is not held in memory twice."""
KNOWN = {
    "mean 0.5 and std 0.5": ((0.5,) * 3, (0.5,) * 3),
    "ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""What transforms often normalize by, besides the spec's own."""
OWN = "own"


@dataclass(frozen=True, kw_only=True)
class PixelScale:
    """What the numbers of some samples stand for, and what the user should know about it."""

    kind: Kind
    spec: InputSpec
    note: str | None = None

    @classmethod
    def of(cls, x: Tensor, spec: InputSpec, *, normalized: bool = False) -> PixelScale:
        """The scale of the samples ``x [n c h w]``; ``normalized``: the caller says that they are.

        Raises:
            SourceError: no scale that pixels have, or normalized without a word.
        """
        if normalized:
            _check_normalized(x, spec)
            return cls(kind="normalized", spec=spec)
        if x.dtype == torch.bool:
            return cls(kind="unit", spec=spec)
        if x.is_complex():
            raise SourceError(f"{x.dtype} holds no pixels; give uint8, or floats in [0, 1]")
        low, high = span(x)
        if not x.is_floating_point():
            _check_integers(low, high, x.dtype)
            wide = f"pixels are {x.dtype} from 0 to {high:g}; they are taken for 8 bits a channel, 255 for white"
            return cls(kind="bytes", spec=spec, note=None if x.dtype == torch.uint8 else wide)
        return cls._of_floats(x, low, high, spec)

    @classmethod
    def _of_floats(cls, x: Tensor, low: float, high: float, spec: InputSpec) -> PixelScale:
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise SourceError("some pixels are NaN or infinite; look at what prepares the samples")
        if low < -SLACK and not (low >= -SLACK * 255 and high > BRIGHT):
            raise SourceError(_told_of_normalized(x, low, high, spec))
        if high <= 1 + SLACK:
            if 0 < high <= 1.01 / 255:
                raise SourceError(
                    f"no pixel is above {high:.4f}: divided by 255 twice? Give uint8, or floats in [0, 1]"
                )
            return cls(kind="unit", spec=spec, note=_clipped(low, high, 1))
        if high <= BRIGHT:
            raise SourceError(
                f"pixels lie between {low:.4g} and {high:.4g}, and white may be any number there; divide by what white "
                f"is, such as x / {_next_power(high)}, so that they lie in [0, 1]"
            )
        if high > 255 * (1 + SLACK):
            raise SourceError(
                f"pixels lie between {low:.4g} and {high:.4g}; divide by what white is, such as x / 65535 for 16 bits, "
                f"so that they lie in [0, 1]"
            )
        note = f"pixels are floats from {low:.4g} to {high:.4g}; they are divided by 255"
        return cls(kind="white", spec=spec, note="; ".join(filter(None, (note, _clipped(low, high, 255)))))

    def pixels(self, x: Tensor) -> Tensor:
        """Samples ``[b c h w]`` of this scale as pixels: uint8, or float32 in [0, 1] (beyond, if they are normalized).

        Raises:
            SourceError: they are of another scale.
        """
        if self.kind == "normalized":
            return _undone(x.float(), self.spec.mean, self.spec.std)
        if (self.kind == "bytes") == (x.is_floating_point() or x.dtype == torch.bool):
            raise SourceError(f"some samples are {x.dtype}, others are not; give all in one type")
        white = 1 if self.kind == "unit" else 255
        low, high = span(x)
        if not (low >= -SLACK * white and high <= white * (1 + SLACK)) and x.numel():
            raise SourceError(
                f"pixels lie between {low:.4g} and {high:.4g} in some samples, in the first ones between 0 and "
                f"{white}; give all in one scale"
            )
        if self.kind == "bytes":
            return x.to(torch.uint8)
        x = x.float() if white == 1 else x.float() / white
        return x.clamp(0, 1) if low < 0 or high > white else x


def span(x: Tensor) -> tuple[float, float]:
    """The least and the largest number of ``x [n ...]``; NaN if one is."""
    parts = [part.aminmax() for part in _sizable(x).split(CHUNK) if part.numel()]
    if not parts:
        return 0.0, 0.0
    lows, highs = (torch.stack([part[i] for part in parts]) for i in range(2))
    return float(lows.amin()), float(highs.amax())


def _sizable(x: Tensor) -> Tensor:
    """``x`` of a type whose least and largest number torch finds."""
    return x.to(torch.int32) if str(x.dtype) == "torch.uint16" else x


def _check_integers(low: float, high: float, dtype: torch.dtype) -> None:
    if low < 0 or high > 255:
        raise SourceError(
            f"pixels are {dtype} from {low:g} to {high:g}; give uint8, or divide by what white is, such as x / 65535 "
            f"for 16 bits"
        )
    if high == 1:
        raise SourceError(
            f"pixels are {dtype}, and none is above 1, of 255: all but black; for black and white give x * 255, and "
            f"floats in [0, 1] must not be cast to integers"
        )


def _clipped(low: float, high: float, white: float) -> str | None:
    if low >= -ROUNDING * white and high <= (1 + ROUNDING) * white:
        return None
    return f"pixels between {low:.4g} and {high:.4g} are clipped to [0, {white:g}]"


def _next_power(high: float) -> int:
    """The least power of two that no pixel exceeds: 16 for scikit-learn's digits."""
    return max(2, 1 << (max(int(high + 0.999), 1) - 1).bit_length())


def _undone(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    std_c, mean_c = (torch.tensor(one, dtype=x.dtype).view(-1, 1, 1) for one in (std, mean))
    return x * std_c + mean_c


def _likeliest(x: Tensor, figures: dict[str, tuple[tuple[float, ...], tuple[float, ...]]]) -> str | None:
    """By which mean and std pixels were normalized: those that bring them into [0, 1] and fill it best."""
    best, widest = None, 0.0
    for name, (mean, std) in figures.items():
        low, high = span(_undone(x[:CHUNK].float(), mean, std))
        if low >= -10 * ROUNDING and high <= 1 + 10 * ROUNDING and high - low > widest + ROUNDING:
            best, widest = name, high - low
    return best


def _told_of_normalized(x: Tensor, low: float, high: float, spec: InputSpec) -> str:
    """Why samples with numbers below 0 are no pixels, and what to do."""
    told = f"pixels lie between {low:.4g} and {high:.4g}"
    if _identity(spec):
        return (
            f"{told}, and the spec (mean 0, std 1) says that the net takes pixels in [0, 1]; give spec= the mean and "
            f"std that they were normalized by and the pixels themselves; if the net does take such numbers: "
            f"dx.data.as_source(data, spec, normalized=True)"
        )
    c = len(spec.mean)
    known = {name: (mean[:c], std[:c]) for name, (mean, std) in KNOWN.items() if len(mean[:c]) == c}
    likely = _likeliest(x, {OWN: (spec.mean, spec.std), **known})
    if likely == OWN:
        return (
            f"{told}: they look normalized by the spec's own mean and std already, and would be once more; give the "
            f"pixels themselves (leave Normalize out of the transform), or say so: "
            f"dx.data.as_source(data, spec, normalized=True)"
        )
    if likely is not None:
        return (
            f"{told}: they look normalized by {likely}, the spec says mean {spec.mean} and std {spec.std}; undo it "
            f"(x * std + mean), or leave Normalize out of the transform"
        )
    return (
        f"{told}: neither pixels nor normalized by the spec, mean {spec.mean} and std {spec.std}; give uint8, or "
        f"floats in [0, 1], as they are before any normalization"
    )


def _check_normalized(x: Tensor, spec: InputSpec) -> None:
    """Samples that are said to be normalized must be so by ``spec``, as far as one can see."""
    if not x.is_floating_point():
        raise SourceError(f"normalized=True, and the samples are {x.dtype}: these are pixels; leave it out")
    low, high = span(_undone(x[:CHUNK].float(), spec.mean, spec.std))
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise SourceError("some samples hold NaN or infinity; look at what prepares them")
    if not _identity(spec) and spec.shape[0] in (1, 3) and not (low >= -SLACK and high <= 1 + SLACK):
        raise SourceError(
            f"normalized=True, but undone by the spec's mean {spec.mean} and std {spec.std} the pixels lie between "
            f"{low:.4g} and {high:.4g}, not in [0, 1]: normalized by other figures; give the spec those"
        )


def _identity(spec: InputSpec) -> bool:
    return not any(spec.mean) and all(std == 1 for std in spec.std)
