"""Samples in rounds: those of a later round are made against exits that were distilled on the earlier ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn
from typing_extensions import Unpack

from dynext.brief import short_repr
from dynext.errors import FitError, SourceError
from dynext.fitting import FitConfig, FitOptions, configured
from dynext.net.dynamic_net import DynamicNet
from dynext.types import Batch, BatchNormMode, InputSpec, Source
from dynext.zeroshot.bank import Bank
from dynext.zeroshot.distill import USUAL as DISTILLATION
from dynext.zeroshot.distill import distill
from dynext.zeroshot.settings import Synthesis
from dynext.zeroshot.synth.synthesize import synthesize

USUAL = replace(DISTILLATION, steps=1000)


@dataclass(frozen=True, kw_only=True, eq=False)
class Joined:
    """Several Sources, one after the other. A batch never holds samples of two of them."""

    __repr__ = short_repr

    parts: Sequence[Source] = field(repr=False)

    def __post_init__(self) -> None:
        if not self.parts:
            raise SourceError("no source to join; give at least one")
        kinds = {(tuple(part.shape), part.bn) for part in self.parts}
        if len(kinds) > 1:
            raise SourceError(f"sources of {sorted(kinds)} cannot be joined; shapes and statistics must agree")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.parts[0].shape)

    @property
    def bn(self) -> BatchNormMode:
        return self.parts[0].bn

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __iter__(self) -> Iterator[Batch]:
        for part in self.parts:
            yield from part


def in_rounds(
    net: DynamicNet,
    teacher: nn.Module,
    spec: InputSpec,
    synthesis: Synthesis = Synthesis(method="inversion"),
    config: FitConfig | None = None,
    *,
    rounds: int = 2,
    folder: Path | str | None = None,
    **options: Unpack[FitOptions],
) -> Joined:
    """``synthesis.n`` samples in ``rounds`` equal rounds. Between rounds a copy of ``net`` is distilled on all samples
    so far; the next round's samples are made against its exits.

    Args:
        synthesis: a method that has the option ``against`` (inversion, generator, mixture).
        config, options: of the distillation, 1,000 steps without them; its seed is also that of the samples.
        folder: where banks and training state are kept; a run that was killed goes on there.

    Raises:
        FitError: a checkpoint, in whose place there is the folder.
        SourceError: fewer samples than rounds, or a method that knows no student.

    Source: the idea of competing with the student, DeepInversion, Yin et al., CVPR 2020, arXiv:1912.08795.
    """
    config, n = configured(USUAL, config, options), synthesis.n
    if config.checkpoint is not None:
        raise FitError(f"checkpoint={config.checkpoint}, but rounds keep several; give folder= in its place")
    keep = None if folder is None else Path(folder)
    if not 1 <= rounds <= n:
        raise SourceError(f"{n} samples in {rounds} rounds; give at least one round, and a sample for each")
    banks: list[Source] = []
    for number in range(rounds):
        against = {}
        if banks:
            state = None if keep is None else keep / f"round{number}.ckpt"
            student = distill(net, teacher, Joined(parts=banks), config, checkpoint=state)
            against = {"against": student}
        banks.append(
            synthesize(
                teacher,
                shape=spec.shape,
                n=n // rounds + (number < n % rounds),
                seed=config.seed + 1000 * number,
                method=synthesis.method,
                spec=spec,
                folder=None if keep is None else keep / f"round{number}",
                progress=config.progress,
                **synthesis.options,
                **against,
            )
        )
    return Joined(parts=banks)


def free_seed(seed: int, source: Source | None) -> int:
    """The first from ``seed`` on that no bank of ``source`` was made with: samples that exits were distilled on must
    not be the ones they are judged on.
    """
    parts = source.parts if isinstance(source, Joined) else [source]
    used = {part.provenance.seed for part in parts if isinstance(part, Bank)}
    return next(free for free in itertools.count(seed) if free not in used)
