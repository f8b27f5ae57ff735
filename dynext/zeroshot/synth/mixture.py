"""Samples of several methods together, in shares that suit the teacher, the most useful ones kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from dynext.errors import SourceError
from dynext.net.dynamic_net import DynamicNet
from dynext.seeding import generator
from dynext.types import InputSpec
from dynext.zeroshot.synth.last_layer import feature_layer
from dynext.zeroshot.synth.method import Sampler, UntrainedSampler, Work, check_options, option_names, samples_per_chunk
from dynext.zeroshot.synth.mixture_weights import best_shares, mixed_loss, moments
from dynext.zeroshot.synth.sample_filter import Filter, keep
from dynext.zeroshot.synth.teacher_student import check_student

DEFAULT = Filter(oversample=1.0)
"""Every sample is kept: on the bundled net the surest samples taught its first exits less than samples taken as they
come.
"""

PARTS = ("fitted", "inversion")
ITERATIVE = ("inversion", "impressions", "generator")
MOST = 0.5
"""Share that iterative methods have at most together, where shares are found automatically: such a sample costs twenty
painted ones, and BatchNorm statistics, which it was made for, would give it everything."""

LEAST = 0.1
"""Share that a method has at least, where shares are found automatically."""

PROBE = 128


def mixture_of(known: Mapping[str, Callable[..., Sampler | UntrainedSampler]]) -> Callable[..., UntrainedSampler]:
    """The method ``mixture``, whose parts are among ``known``."""

    def mixture(
        teacher: nn.Module,
        spec: InputSpec,
        seed: int,
        *,
        methods: Sequence[str] = PARTS,
        shares: Sequence[float] | None = None,
        parts: Mapping[str, Mapping[str, Any]] | None = None,
        settings: Filter = DEFAULT,
        against: DynamicNet | None = None,
    ) -> UntrainedSampler:
        """Samples of several ``methods``; of ``settings.oversample`` times as many as wanted, the most useful are kept.

        Args:
            shares: of each method; found automatically without: of a few samples of each, the shares with which all
                together come nearest to the teacher's BatchNorm statistics and an even use of its classes, iterative
                methods held to a half (`affordable`).
            parts: options of the methods, by name.
            against: a net whose exits should learn from the samples; handed to the methods that can use it.

        Raises:
            SourceError: methods, shares or options that do not fit together.
        """
        given = _checked(known, methods, shares, parts or {})
        if against is not None:
            check_student(teacher, against, spec)
            for name in methods:
                if "against" in option_names(known[name]):
                    given[name].setdefault("against", against)
        plans = {name: known[name](teacher, spec, seed, **given[name]) for name in methods}

        def prepare(work: Work) -> Sampler:
            samplers = {name: plan.prepare(work) for name, plan in plans.items()}
            share_m, told = _shares(teacher, samplers, spec, seed, shares)
            layer = feature_layer(teacher, spec)

            def sample(count: int, draw: Generator) -> Tensor:
                wanted = math.ceil(count * settings.oversample)
                x = torch.cat(
                    [
                        sampler.sample(some, draw)
                        for sampler, some in zip(samplers.values(), dealt(wanted, share_m, draw), strict=True)
                        if some
                    ]
                )
                kept = keep(teacher, layer, x, count, settings, against)
                return x[kept[torch.randperm(len(kept), generator=draw)]]

            notes = {**told, "parts": {name: sampler.notes for name, sampler in samplers.items()}}
            return Sampler(sample=sample, per_chunk=samples_per_chunk(spec.shape), notes=notes)

        return UntrainedSampler(prepare=prepare, per_chunk=samples_per_chunk(spec.shape))

    return mixture


def _checked(
    known: Mapping[str, Callable[..., Sampler | UntrainedSampler]],
    methods: Sequence[str],
    shares: Sequence[float] | None,
    parts: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Each method's options."""
    names = [name for name in known if name != "mixture"]
    wrong = [name for name in methods if name not in names]
    if wrong or not methods or len(set(methods)) < len(methods):
        raise SourceError(f"methods {', '.join(methods) or 'none'}; give different ones among {', '.join(names)}")
    if shares is not None and (len(shares) != len(methods) or min(shares) < 0 or not sum(shares) > 0):
        raise SourceError(f"shares {tuple(shares)} for {', '.join(methods)}; give one each, none negative, not all 0")
    for name, options in parts.items():
        if name not in methods:
            raise SourceError(f"options for {name}, which is not among the methods {', '.join(methods)}")
        check_options(options, known[name], name)
    return {name: dict(parts.get(name, {})) for name in methods}


def _shares(
    teacher: nn.Module, samplers: Mapping[str, Sampler], spec: InputSpec, seed: int, shares: Sequence[float] | None
) -> tuple[list[float], dict[str, Any]]:
    """The share of each method, and what the provenance tells about them."""
    if shares is not None:
        share_m = [share / sum(shares) for share in shares]
        return share_m, {"shares": dict(zip(samplers, share_m, strict=True))}
    count = min(PROBE, samples_per_chunk(spec.shape))
    probed = [moments(teacher, sampler.sample(count, generator(seed))) for sampler in samplers.values()]
    kinds, wanted = [kind for kind, _ in probed], probed[0][1]
    share_m = affordable(list(samplers), best_shares(kinds, wanted, least=min(LEAST, 1 / len(kinds))))
    one = torch.ones(1, dtype=torch.double)
    told = {
        "shares": {name: round(share, 4) for name, share in zip(samplers, share_m, strict=True)},
        "loss": {n: float(mixed_loss(one, [kind], wanted)) for n, kind in zip(samplers, kinds, strict=True)},
        "mixed_loss": float(mixed_loss(torch.tensor(share_m, dtype=torch.double), kinds, wanted)),
    }
    return share_m, told


def affordable(names: Sequence[str], shares: Sequence[float]) -> list[float]:
    """``shares`` with those of iterative methods scaled down to `MOST` together, if there are others beside them."""
    costly = sum(share for name, share in zip(names, shares, strict=True) if name in ITERATIVE)
    if costly <= MOST or costly >= 1 - 1e-9:
        return list(shares)
    down, up = MOST / costly, (1 - MOST) / (1 - costly)
    return [share * (down if name in ITERATIVE else up) for name, share in zip(names, shares, strict=True)]


def dealt(count: int, shares: Sequence[float], draw: Generator) -> list[int]:
    """``count`` samples dealt out by ``shares``: right to within a sample, and on average exactly right."""
    offset = float(torch.rand((), generator=draw, dtype=torch.double))
    edges, reached = [0], 0.0
    for share in shares[:-1]:
        reached += share
        edges.append(min(math.floor(reached * count + offset), count))
    return [end - start for start, end in zip(edges, [*edges[1:], count], strict=True)]
