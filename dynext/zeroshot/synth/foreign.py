"""A synthesizer of somebody else's: what it must give, and what is checked of it.

A method is any callable ``(teacher, spec, seed, **options)``. It gives a function ``sample(count, generator)``, or an
object with such a method, whose samples are ``[count c h w]``: floats, normalized as the teacher expects them
(`InputSpec.normalize` makes them of pixels in [0, 1]), the same ones for the same generator. The object may also have
``per_chunk``, how many samples are made at a time; ``notes``, what the bank's provenance shall tell; and ``bn``, which
BatchNorm statistics suit the samples: "batch" (the usual one) or "running".

The teacher that a method is handed is a private copy, in evaluation, whose parameters want no gradient. Global random
numbers of torch follow the chunk's generator, and the caller's are left alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any, get_args

import torch
from torch import Generator, Tensor, nn

from dynext.errors import DynextError, SourceError, line
from dynext.graph.copying import tolerant_copy
from dynext.seeding import generator, seeded
from dynext.types import BatchNormMode, InputSpec
from dynext.zeroshot.synth.method import Sampler, UntrainedSampler, Work, samples_per_chunk

TRIED = 2
"""Samples that are made twice, to see whether they come out alike."""

BEYOND = 3.0
"""How far samples may leave the range of pixels, in widths of that range: noise does, pixels of 0 to 255 go farther."""

CALL = "(teacher, spec, seed, **options)"


def adopted(method: Callable[..., Any], name: str) -> Callable[..., Sampler | UntrainedSampler]:
    """``method`` as one of our own, called ``name`` in messages; what it gives is checked at every chunk."""

    @wraps(method, updated=())
    def made(teacher: nn.Module, spec: InputSpec, seed: int, **options: Any) -> Sampler | UntrainedSampler:
        private = tolerant_copy(teacher)[0].eval().requires_grad_(False)
        try:
            inspect.signature(method).bind(private, spec, seed, **options)
        except TypeError as error:
            raise SourceError(f"method {name} is called {CALL}, and it does not take that ({error})") from error
        with seeded(seed), _blamed(name):
            result = method(private, spec, seed, **options)
        return _checked_plan(result, name, spec)

    return made


def _checked_plan(result: Any, name: str, spec: InputSpec) -> Sampler | UntrainedSampler:
    if not isinstance(result, UntrainedSampler):
        return _checked_sampler(result, name, spec)

    def prepare(work: Work) -> Sampler:
        return _checked_sampler(result.prepare(work), name, spec)

    return replace(result, prepare=prepare)


def _checked_sampler(result: Any, name: str, spec: InputSpec) -> Sampler:
    """What a method gave, as a `Sampler` that checks its samples."""
    plain = None if isinstance(result, nn.Module | type) else result
    sample = getattr(result, "sample", plain)
    per_chunk = getattr(result, "per_chunk", samples_per_chunk(spec.shape))
    bn: Any = getattr(result, "bn", "batch")
    notes = getattr(result, "notes", {})
    if not callable(sample):
        raise SourceError(
            f"method {name} gave a {type(result).__name__}; it is to give a function sample(count, generator), or an "
            f"object with that method, not the samples themselves"
        )
    if not isinstance(per_chunk, int) or per_chunk < 1 or bn not in get_args(BatchNormMode) or type(notes) is not dict:
        raise SourceError(
            f"method {name}: per_chunk={per_chunk!r}, bn={bn!r}, notes of {type(notes).__name__}; give a positive "
            f"number, 'batch' or 'running', and a dict"
        )

    def checked(count: int, draw: Generator) -> Tensor:
        with seeded(draw.initial_seed()), _blamed(name):
            x = sample(count, draw)
        return checked_samples(x, count, spec, name)

    _check_repeatable(checked, name)
    return Sampler(sample=checked, per_chunk=per_chunk, notes=notes, bn=bn)


def checked_samples(x: Any, count: int, spec: InputSpec, name: str) -> Tensor:
    """``x``, if it is ``count`` normalized samples: on the CPU, without gradients.

    Raises:
        SourceError: says what it is instead.
    """
    if not isinstance(x, Tensor) or tuple(x.shape) != (count, *spec.shape):
        given = f"a tensor {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise SourceError(
            f"method {name} gave {given} when asked for {count} samples; give a tensor {(count, *spec.shape)}"
        )
    if not x.is_floating_point():
        raise SourceError(
            f"method {name} gave {x.dtype}; give normalized floats, spec.normalize(x) makes them of uint8"
        )
    x = x.detach().cpu()
    if not torch.isfinite(x).all():
        raise SourceError(f"method {name} gave NaN or infinity among its samples; look at its divisions and logarithms")
    _check_range(x, spec, name)
    return x


def _check_range(x: Tensor, spec: InputSpec, name: str) -> None:
    """Raises SourceError: samples that are pixels, of 0 to 255 or of 0 to 1, not yet normalized."""
    ends = spec.normalize(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, spec.shape[0], 1, 1))
    least, most = ends[0].min().item(), ends[1].max().item()
    low, high = x.min().item(), x.max().item()
    if low < least - BEYOND * (most - least) or high > most + BEYOND * (most - least):
        raise SourceError(
            f"method {name} gave samples from {low:.4g} to {high:.4g}, where pixels lie between {least:.4g} and "
            f"{most:.4g}; give normalized samples: spec.normalize(pixels), pixels in [0, 1]"
        )
    if x.numel() > 1 and low >= 0 and high <= 1 and low < high and (least < -0.2 or most > 1.2):
        raise SourceError(
            f"method {name} gave samples that all lie in [0, 1], like pixels; this teacher expects them normalized, "
            f"between {least:.4g} and {most:.4g}: give spec.normalize(pixels)"
        )


def _check_repeatable(sample: Callable[[int, Generator], Tensor], name: str) -> None:
    if not torch.equal(sample(TRIED, generator(0)), sample(TRIED, generator(0))):
        raise SourceError(
            f"method {name} gives other samples for the same generator; draw all that is random with the generator "
            f"that sample(count, generator) is handed, and keep no state between calls"
        )


@contextmanager
def _blamed(name: str) -> Iterator[None]:
    """Inside, an error that is not ours is told to be the method's."""
    try:
        yield
    except DynextError:
        raise
    except Exception as error:  # code of somebody else's can fail in any way
        raise SourceError(
            f"method {name} failed ({line(error)}); it is called {CALL}, its samples by sample(count, generator)"
        ) from error
