"""Samples from a teacher alone. There is no data parameter, by design."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from tqdm import tqdm

from dynext import plugins
from dynext.errors import SourceError
from dynext.seeding import generator
from dynext.types import InputSpec
from dynext.usual_modes import in_usual_modes
from dynext.zeroshot.bank import Bank, Provenance, open_or_start, read_shards, write_head, write_shard
from dynext.zeroshot.synth.bn_statistics import in_full
from dynext.zeroshot.synth.last_layer import answers
from dynext.zeroshot.synth.method import Method, Work, check_options
from dynext.zeroshot.synth.registry import BLIND, Chosen, chosen


@in_usual_modes
def synthesize(
    teacher: nn.Module,
    *,
    shape: tuple[int, ...],
    n: int,
    seed: int,
    method: Method = "leaves",
    spec: InputSpec | None = None,
    folder: Path | str | None = None,
    progress: bool = True,
    **options: Any,
) -> Bank:
    """``n`` samples of ``shape`` (c, h, w) made without any image; the teacher is not changed.

    Args:
        method: a name (`METHODS` and what other packages register), or a function ``(teacher, spec, seed, **options)``
            that gives a function ``sample(count, generator)`` of normalized samples ``[count c h w]``
            (`dynext.zeroshot.synth.foreign`); ``options`` are that method's own.
        spec: the teacher's normalization; without it mean .5 and deviation .25 in every channel are assumed.
        folder: where to keep the bank; a synthesis that was killed goes on there and ends at the same bytes.

    Raises:
        SourceError: nonsense among the arguments, a teacher that is looked at and does not answer such samples with one
            tensor ``[b k]``, or a folder that holds something else.
    """
    how = chosen(method)
    spec = _checked(shape, n, how, spec, options)
    began = time.monotonic()
    precise = in_full(teacher)
    if how.name not in BLIND:
        answers(precise, spec)  # or say now what is wrong with it
    used = {name: in_full(value) if isinstance(value, nn.Module) else value for name, value in options.items()}
    plan = how.make(precise, spec, seed, **used)
    provenance = Provenance(
        method=how.name,
        made_by=how.made_by,
        seed=seed,
        n=n,
        spec=spec,
        bn=plan.bn,
        teacher=fingerprint(teacher),
        options=in_json(options),
        per_shard=plan.per_chunk,
    )
    done, shards = 0, []
    work = Work(folder=None if folder is None else Path(folder), progress=progress)
    if work.folder is not None:
        provenance, done = open_or_start(work.folder, provenance)
        if done == n:
            return Bank.open(work.folder)
        shards = list(read_shards(work.folder, provenance, done))
    sampler = plan.prepare(work)
    provenance = replace(provenance, notes=sampler.notes)
    before = provenance.seconds
    bar = tqdm(total=n, initial=done, desc=how.name, unit="row", disable=None if progress else True, leave=False)
    with bar:
        for start in range(done, n, sampler.per_chunk):
            number, count = start // sampler.per_chunk, min(sampler.per_chunk, n - start)
            shard = sampler.sample(count, _chunk_generator(seed, number)).half()
            provenance = replace(provenance, seconds=before + time.monotonic() - began)
            if work.folder is None:
                shards.append(shard)
            else:
                write_shard(work.folder, number, shard)
                write_head(work.folder, provenance, start + count)
            bar.update(count)
    work.clear()
    return Bank(shards=tuple(shards), provenance=provenance) if work.folder is None else Bank.open(work.folder)


def _chunk_generator(seed: int, number: int) -> Generator:
    """A generator of its own for each chunk, so that no chunk needs the ones before it."""
    return generator(int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "big"))


def _checked(shape: tuple[int, ...], n: int, how: Chosen, spec: InputSpec | None, options: dict[str, Any]) -> InputSpec:
    if n < 1:
        raise SourceError(f"n={n}; ask for at least one sample")
    if len(shape) != 3 or min(shape) < 1:
        raise SourceError(f"shape {tuple(shape)}; give one sample's (channels, height, width)")
    check_options(options, how.make, how.name)
    if spec is None:
        return InputSpec(shape=tuple(shape), mean=(0.5,) * shape[0], std=(0.25,) * shape[0])
    if spec.shape != tuple(shape):
        raise SourceError(f"shape {tuple(shape)} but the spec is for {spec.shape}; they must agree")
    return spec


def fingerprint(module: nn.Module) -> str:
    """Twelve hexadecimal digits that change with any parameter or buffer."""
    return _digest(module.state_dict().items())


def _digest(named: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in named:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat: Tensor = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def in_json(value: Any, name: str = "") -> Any:
    """Options as provenance and records keep them, in JSON: a fingerprint stands for a net, an image or a file."""
    if isinstance(value, nn.Module):
        return f"{type(value).__name__} {fingerprint(value)}"
    if isinstance(value, np.ndarray | Tensor):
        return f"pixels {_digest([('', torch.as_tensor(value))])}"
    if isinstance(value, Path) or (name == "image" and isinstance(value, str)):
        return f"{Path(value).name} {hashlib.sha256(Path(value).read_bytes()).hexdigest()[:12]}"
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: in_json(getattr(value, f.name), f.name) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): in_json(v, str(k)) for k, v in value.items()}
    if callable(value):
        return plugins.identity(value)
    return [in_json(v) for v in value] if isinstance(value, list | tuple) else value
