"""What a synthesizer hands over: a function that makes samples, chunk by chunk."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from torch import Generator, Tensor

from dynext.errors import SourceError
from dynext.types import BatchNormMode

Method: TypeAlias = str | Callable[..., Any]
"""A name, or a function ``(teacher, spec, seed, **options)`` as `dynext.zeroshot.synth.foreign` tells of it."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Where a method may keep what it has trained so far (nowhere without a folder), and whether to show progress."""

    folder: Path | None = None
    progress: bool = True

    def checkpoint(self, name: str) -> Path | None:
        """The file for the state of ``name``; hidden, because the folder is the bank's."""
        return None if self.folder is None else self.folder / f".{name}.ckpt"

    def clear(self) -> None:
        """Remove what was kept: the bank is finished."""
        if self.folder is not None:
            for path in self.folder.glob(".*.ckpt"):
                path.unlink()


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How samples are made. Chunks have a fixed size and a generator each, so that a killed synthesis can go on.

    A method is a function ``(teacher, spec, seed, **options) -> Sampler``, or ``-> UntrainedSampler`` where something
    has to be trained first. What is found out about the teacher in seconds is found out in the call itself.
    """

    sample: Callable[[int, Generator], Tensor]
    """``sample(count, draw)``: ``count`` samples ``[count c h w]``, normalized."""
    per_chunk: int
    notes: dict[str, Any] = field(default_factory=dict)
    """What was found out, for the bank's provenance."""
    bn: BatchNormMode = "batch"

    def prepare(self, work: Work) -> Sampler:
        """Itself: nothing long has to be done first."""
        return self


@dataclass(frozen=True, kw_only=True)
class UntrainedSampler:
    """A maker that takes long to get ready: `synthesize` asks for it once it knows that samples are wanted and
    where.
    """

    prepare: Callable[[Work], Sampler]
    per_chunk: int
    bn: BatchNormMode = "batch"


def samples_per_chunk(shape: tuple[int, ...]) -> int:
    """256 small samples, or as many large ones as fit a few megabytes, so that a chunk stays in the processor's
    cache.
    """
    return max(16, min(256, 2**18 // (shape[-1] * shape[-2])))


def option_names(method: Callable[..., Sampler | UntrainedSampler]) -> list[str]:
    """The options that a method names: what it takes beside the teacher, the spec and the seed."""
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, p in list(inspect.signature(method).parameters.items())[3:] if p.kind in kinds]


def check_options(options: Iterable[str], method: Callable[..., Sampler | UntrainedSampler], name: str) -> None:
    """Raises SourceError: an option that the method of that name does not take."""
    known = option_names(method)
    anything = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(method).parameters.values())
    unknown = [key for key in options if key not in known]
    if unknown and not anything:
        raise SourceError(f"method {name} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
