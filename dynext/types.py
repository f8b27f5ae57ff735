"""Types that the whole package shares; they check themselves and do little else.

Shape legend: b samples in a batch, n samples in a table, e exits (the last is the full net),
k classes, s stages, g gated stages, c channels, h height, w width.
Cost is always MACs per sample, heads and gates included; confidence is always "higher is surer".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from dynext.brief import short_repr
from dynext.errors import SourceError

Basis = Literal["labels", "teacher"]
"""What a sample counts as right against: its label, or the full net's own answer."""

BatchNormMode = Literal["running", "batch"]
"""Which statistics a frozen teacher's BatchNorms use while features are cached."""


MOST_MEAN = 2.0
"""Largest mean that is taken. Those of pixels in [0, 1] are below; a few nets use other offsets, but none of tens."""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What a model expects: the shape of one sample and the normalization of its pixels.

    ``x = (pixel / 255 - mean) / std`` per channel; ``shape`` is ``(c, h, w)`` for images.
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1:
            raise SourceError(f"shape {tuple(self.shape)}; give one sample's (channels, height, width)")
        channels = self.shape[0]
        if len(self.mean) != channels or len(self.std) != channels:
            raise SourceError(
                f"{len(self.mean)} means and {len(self.std)} deviations for {channels} channels; "
                f"give one of each per channel"
            )
        if not all(0 < s < float("inf") for s in self.std):
            raise SourceError(f"std {self.std} must be positive in every channel")
        if not all(abs(m) <= MOST_MEAN for m in self.mean):
            raise SourceError(f"mean {self.mean} is of pixels in [0, 1]; divide by 255 what was taken of 0 to 255")

    def normalize(self, pixels: Tensor) -> Tensor:
        """Pixels ``[b c h w]``, uint8 or float in [0, 1], to what the model expects."""
        x = pixels.float().div(255) if pixels.dtype == torch.uint8 else pixels
        mean = torch.tensor(self.mean, dtype=x.dtype, device=x.device).view(-1, 1, 1)
        std = torch.tensor(self.std, dtype=x.dtype, device=x.device).view(-1, 1, 1)
        return (x - mean) / std

    def pixels(self, x: Tensor) -> Tensor:
        """The inverse of `normalize`: what the model expects ``[b c h w]`` to pixels in [0, 1], for pictures."""
        mean = torch.tensor(self.mean, dtype=x.dtype, device=x.device).view(-1, 1, 1)
        std = torch.tensor(self.std, dtype=x.dtype, device=x.device).view(-1, 1, 1)
        return (x * std + mean).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples on their way to a net: ``x [b ...]`` normalized, ``y [b]`` int64 or ``None``."""

    __repr__ = short_repr

    x: Tensor
    y: Tensor | None = None


class Top(NamedTuple):
    """The likeliest classes of each sample ``[b k]`` (int64), and what they are given ``[b k]``."""

    classes: Tensor
    probabilities: Tensor


@dataclass(frozen=True, kw_only=True, repr=False)
class Prediction:
    """What a dynamic run gives: ``logits [b k]``, ``exit [b]`` (int64, from 0) and ``macs [b]`` (int64).

    Logits are raw: each exit has a scale of its own. `confidence`, `probabilities` and `top` are at the temperatures
    that the policy gives its exits, and compare between samples that left at different ones.

    >>> logits = torch.tensor([[2.0, 0.0], [8.0, 0.0]])
    >>> exit, macs = torch.tensor([0, 1]), torch.tensor([5, 9])
    >>> given = Prediction(logits=logits, exit=exit, macs=macs, temperature_e=(1.0, 4.0))
    >>> given.classes.tolist(), [round(sure, 2) for sure in given.confidence.tolist()]
    ([0, 0], [0.88, 0.88])
    """

    logits: Tensor
    exit: Tensor
    macs: Tensor
    ran: Tensor | None = None
    """Which gated stages each sample ran ``[b g]`` (bool); ``None`` where gates were not used."""
    temperature_e: tuple[float, ...] = ()
    """Of each exit, by the policy; 1 everywhere where there is none."""

    @property
    def classes(self) -> Tensor:
        """The answers ``[b]``, int64."""
        return self.logits.argmax(-1)

    @property
    def confidence(self) -> Tensor:
        """How sure the net is of each answer ``[b]``, in [0, 1]: the probability that it gives it."""
        return self.probabilities().amax(-1)

    def probabilities(self) -> Tensor:
        """Of every class ``[b k]``, float32, at the temperature of the exit that answered."""
        logits = self.logits.float()  # half precision would round what is divided
        if not self.temperature_e:
            return logits.softmax(-1)
        return (logits / logits.new_tensor(self.temperature_e)[self.exit][:, None]).softmax(-1)

    def top(self, k: int) -> Top:
        """The ``k`` likeliest classes, the likeliest first; all of them where there are fewer.

        Raises:
            SourceError: fewer than one asked for.
        """
        if k < 1:
            raise SourceError(f"top({k}); ask for 1 class or more")
        given = self.probabilities().topk(min(k, self.logits.shape[-1]), dim=-1)
        return Top(classes=given.indices, probabilities=given.values)

    def __repr__(self) -> str:
        exits = ", ".join(f"{n} at exit {e}" for e, n in enumerate(torch.bincount(self.exit).tolist()) if n)
        macs = float(self.macs.double().mean()) / 1e6 if len(self.macs) else 0.0
        return (
            f"Prediction({len(self.exit)} samples of {self.logits.shape[-1]} classes: {exits}; {macs:,.2f} M MACs each)"
        )


@runtime_checkable
class Source(Protocol):
    """Where samples come from. Iterates batches in one fixed order and can be iterated again.

    ``bn`` says which BatchNorm statistics suit these samples: ``"running"`` for real ones,
    ``"batch"`` for synthetic ones, whose statistics are not the training set's.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def bn(self) -> BatchNormMode: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


Data: TypeAlias = Source | Any
"""Samples in whatever form: `dynext.data.as_source` says which there are, and makes a Source of them."""
