"""The main job in one call: a pretrained static classifier in, a dynamic net and its policy out, without its data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynext.core.calibrate import calibrate as temperatures
from dynext.core.collect import collect
from dynext.core.cost import measure
from dynext.core.exits import Heads, default_heads
from dynext.core.net import DynamicNet, attach
from dynext.core.policy import Policy
from dynext.core.search import DEFAULT_MAX_DROP, choose
from dynext.core.table import ExitTable
from dynext.data import Rows
from dynext.errors import SourceError
from dynext.graph import split
from dynext.types import InputSpec, Source
from dynext.zeroshot.bank import Bank
from dynext.zeroshot.distill import Features, cache_features, distill
from dynext.zeroshot.effort import effort_for
from dynext.zeroshot.folds import FOLDS, Views, held_out_table
from dynext.zeroshot.synthesize import synthesize

THRESHOLD_ROWS = 2048
"""Synthesized rows of each kind that thresholds are chosen on when there is no real row."""

VIEWS = 8
"""How often each calibration row is seen when it is distilled on."""

CAUTION = 0.75
"""Share of the allowed loss that thresholds may use up on the rows they are chosen on. The rest is for rows unlike
these: calibration images are often leftovers of the training set, on which exits and full net agree more. Cross-fitted
tables may use up all of it: the exits that answer there saw fewer rows than those that will run, and do worse."""

LOOK = 0.03
"""Price of passing an early exit beyond its MACs, as a share of the static net: measured on the bundled net at batch 1
and 64, a head and the decision take .02 to .06 of it, where their MACs are .007. A constant, for the same seed to give
the same policy on every machine."""

OTHER_METHOD = "leaves"
"""The second kind: thresholds must hold on rows that were not made the way the exits' own were."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Conversion:
    """What `convert` gives: the dynamic net, its policy, the table the policy was chosen on, and how it came about."""

    net: DynamicNet
    policy: Policy
    table: ExitTable
    spec: InputSpec
    rows: Source = field(repr=False)
    """What the exits were distilled on: the synthesized bank, or the rows that were given."""
    provenance: dict[str, Any]


def convert(
    teacher: nn.Module,
    example: Tensor | None = None,
    *,
    spec: InputSpec | None = None,
    after: Sequence[str] | Sequence[float] | None = None,
    heads: Heads | None = None,
    method: str = "fitted",
    n: int = 8192,
    steps: int = 1000,
    minutes: float | None = None,
    distill_on: Source | None = None,
    calibrate: Rows | None = None,
    distill_on_calibration: bool = False,
    max_drop: float | None = None,
    budget: float | None = None,
    seed: int = 0,
    folder: Path | str | None = None,
    accelerator: str = "cpu",
    progress: bool = True,
    notify: Callable[[str], None] = lambda message: None,
) -> Conversion:
    """Turn ``teacher`` into an early-exit net without its training data; the teacher itself is not changed.

    Split, attach exits, synthesize rows out of the teacher, distil the exits on them, choose temperatures and
    thresholds. Without ``calibrate`` these are chosen on further synthesized rows, of two kinds, and hold on the worse
    of the two; a policy that lets nobody leave is then a possible, honest outcome.

    Args:
        example: one batch of input, of any size; only its shape is used. ``spec`` says it too.
        spec: input shape and normalization; by default mean .5 and std .25 for the example's channels.
        after: where exits stand: layer names, shares of the MACs, or the automatic choice.
        heads: what to put there, by the tap's shape (`dx.default_heads`).
        method: how rows are synthesized (`dx.synthesize`); ``n`` how many.
        minutes: time to take, instead of ``n`` and ``steps``, which are then planned by this machine's speed
            (for the methods that only paint rows; others take longer).
        distill_on: rows to distil on instead of synthesizing some: a bank from before, or many unlabelled real rows.
        calibrate: a few hundred *unlabelled* real rows for temperatures and thresholds (agreement with the full net).
        distill_on_calibration: also distil on those rows. Thresholds are then chosen on answers of heads that have not
            seen the row (cross-fitting).
        max_drop: accuracy that may be lost (share; .01 by default). ``budget``: share of the static net's MACs.
        folder: keep banks and training state here, so that an interrupted conversion goes on where it was.

    Raises:
        SplitError, SourceError, PolicyError: what cannot be cut, fed or chosen, with what to do.
    """
    spec = _spec(example, spec)
    if calibrate is None and distill_on_calibration:
        raise SourceError("distill_on_calibration needs rows to distil on; give calibrate= as well")
    keep = None if folder is None else Path(folder)
    like = next(teacher.parameters())
    staged = split(teacher, torch.zeros(1, *spec.shape).to(like), after)
    net = attach(staged, heads or default_heads(staged.num_classes), seed=seed)
    net.cost = measure(net)
    notify(f"split after {', '.join(net.exit_names[:-1])}")
    if minutes is not None:
        effort = effort_for(
            minutes,
            net,
            teacher,
            spec,
            trainings=0.5 * (2 + FOLDS) if distill_on_calibration else 1.0,
            further_rows=VIEWS * len(calibrate or ()) if distill_on_calibration else 0,
            keep=keep,
        )
        n, steps = effort.rows, effort.steps
        notify(f"{n:,} rows and {steps:,} steps are planned, {effort.seconds:.0f} s")
    rows = distill_on or _synthesized(teacher, spec, method, n, seed, keep, progress)
    notify(f"{len(rows):,} rows to distil on")
    features = cache_features(net, teacher, rows, progress=progress)

    def train(start: DynamicNet, rows: Features, name: str, share: float = 1.0) -> DynamicNet:
        return distill(
            start,
            teacher,
            rows,
            steps=round(share * steps),
            seed=seed,
            checkpoint=None if keep is None else keep / f"{name}.ckpt",
            accelerator=accelerator,
            progress=progress,
        )

    caution = CAUTION
    if calibrate is not None and distill_on_calibration:
        caution = 1.0
        seen = Views(rows=calibrate.unlabelled(), count=VIEWS, seed=seed)
        real = cache_features(net, teacher, seen, progress=progress)
        # The first half sees no real row, so that the folds can share it.
        start = train(net, features, "heads-synthesized", 0.5)
        trained = train(start, Features.join([features, real]), "heads", 0.5)
        tables = [
            held_out_table(
                start,
                real,
                features,
                lambda rows, name: train(start, rows, name, 0.5),
                rows=len(calibrate),
                seed=seed,
            )
        ]
    else:
        trained = train(net, features, "heads")
        tables = _tables(trained, teacher, spec, calibrate, method, seed, progress)
    notify(f"distilled {len(net.exits)} exits")
    policy = choose_cautiously(tables, max_drop=max_drop, budget=budget, caution=caution)
    provenance = {
        "method": method if distill_on is None else "given rows",
        "rows": len(rows),
        "steps": steps,
        "seed": seed,
        "calibration_rows": 0 if calibrate is None else len(calibrate),
        "distilled_on_calibration": distill_on_calibration,
        "torch": torch.__version__,
    }
    return Conversion(net=trained, policy=policy, table=tables[0], spec=spec, rows=rows, provenance=provenance)


def choose_cautiously(
    tables: Sequence[ExitTable],
    *,
    max_drop: float | None = None,
    budget: float | None = None,
    caution: float = CAUTION,
) -> Policy:
    """`choose` at calibrated temperatures (those of the first table), within ``caution`` times the allowed loss."""
    if max_drop is None and budget is None:
        max_drop = DEFAULT_MAX_DROP
    allowed = None if max_drop is None else caution * max_drop
    return choose(tables, max_drop=allowed, budget=budget, temperature=temperatures(tables[0]), look=LOOK)


def _synthesized(
    teacher: nn.Module, spec: InputSpec, method: str, n: int, seed: int, keep: Path | None, progress: bool
) -> Bank:
    folder = None if keep is None else keep / f"bank-{method}-{seed}"
    return synthesize(
        teacher, shape=spec.shape, n=n, seed=seed, method=method, spec=spec, folder=folder, progress=progress
    )


def _tables(
    net: DynamicNet,
    teacher: nn.Module,
    spec: InputSpec,
    calibration: Rows | None,
    method: str,
    seed: int,
    progress: bool,
) -> list[ExitTable]:
    """What to choose on: the calibration rows, or else further synthesized rows of two kinds."""
    if calibration is not None:
        return [collect(net, calibration.unlabelled(), rows=f"{len(calibration):,} unlabelled rows")]
    tables = []
    for kind in dict.fromkeys((method, OTHER_METHOD)):
        fresh = _synthesized(teacher, spec, kind, THRESHOLD_ROWS, seed + 1, None, progress)
        tables.append(collect(net, fresh, rows=f"{len(fresh):,} synthesized rows ({kind}, seed {seed + 1})"))
    return tables


def _spec(example: Tensor | None, spec: InputSpec | None) -> InputSpec:
    if example is None:
        if spec is None:
            raise SourceError("give an example batch or spec=dx.InputSpec(...); a net does not say what shape it eats")
        return spec
    shape = tuple(example.shape[1:])
    if spec is None:
        return InputSpec(shape=shape, mean=(0.5,) * shape[0], std=(0.25,) * shape[0])
    if shape != spec.shape:
        raise SourceError(f"the example has rows {shape}, spec says {spec.shape}; they must agree")
    return spec
