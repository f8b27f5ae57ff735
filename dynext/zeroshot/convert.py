"""The main job in one call: a pretrained static classifier in, a dynamic net and its policy out, without its data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from dynext.data.samples import Samples
from dynext.errors import FitError, SourceError
from dynext.graph.split import split
from dynext.modules.exits import Heads, default_heads
from dynext.net.attach import attach
from dynext.net.collect import collect
from dynext.net.dynamic_net import DynamicNet
from dynext.net.measure import measure
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable
from dynext.train.drift import lost_by_drift
from dynext.types import InputSpec, Source
from dynext.zeroshot.bank import Bank
from dynext.zeroshot.convert_checks import (
    check_reach,
    check_record,
    check_rows,
    check_wishes,
    digest_of,
    pixels_digest,
    spec_for,
    told_of,
)
from dynext.zeroshot.cross_fit import FOLDS, Views, cross_fitted
from dynext.zeroshot.distill import Features, cache_features, distill
from dynext.zeroshot.joint import distill_jointly
from dynext.zeroshot.recalibrate import recalibrated
from dynext.zeroshot.rounds import free_seed
from dynext.zeroshot.skip import KEEPS, SKIP_STEPS, SkipKind, attach_around_blocks, skipping_kind, teach_to_skip
from dynext.zeroshot.synth.answers import check_logits
from dynext.zeroshot.synth.synthesize import fingerprint, synthesize
from dynext.zeroshot.thresholds import (
    CAUTION,
    ROWS,
    choose_cautiously,
    choose_unseen,
    skip_tables,
    table_under,
)
from dynext.zeroshot.time_budget import DRIFT_FORWARDS, JOINT_STEPS, JUDGED_FORWARDS, RULE_FORWARDS, effort_for

VIEWS = 8
"""How often each calibration sample is seen when it is distilled on."""

Train = Literal["frozen", "joint"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Conversion:
    """What `convert` gives: the dynamic net, its policy, the table the policy was chosen on, and how it came about."""

    net: DynamicNet
    policy: Policy
    table: ExitTable
    spec: InputSpec
    rows: Source = field(repr=False)
    """What the exits were distilled on: the synthesized bank, or the samples that were given."""
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
    train: Train = "frozen",
    joint_steps: int = JOINT_STEPS,
    skip: bool | SkipKind = False,
    skip_steps: int = SKIP_STEPS,
    distill_on: Source | None = None,
    calibrate: Samples | None = None,
    distill_on_calibration: bool = False,
    max_drop: float | None = None,
    budget: float | None = None,
    seed: int = 0,
    folder: Path | str | None = None,
    accelerator: str = "cpu",
    progress: bool = True,
    notify: Callable[[str], None] = lambda message: None,
) -> Conversion:
    """Turn ``teacher`` into a dynamic net without its training data; the teacher itself is not changed.

    Split, attach exits, synthesize samples out of the teacher, distil the exits on them, choose temperatures and
    thresholds. Without ``calibrate`` these are chosen on further synthesized samples of two kinds, hold on the worse of
    the two, and are the more cautious the more the kinds differ; a policy that lets nobody leave is then a possible,
    honest outcome.

    Args:
        example: one batch of input, of any size; only its shape is used. ``spec`` says it too.
        spec: input shape and normalization; by default that of the samples that are given, without any mean .5 and std
            .25 for the example's channels.
        after: where exits stand: layer names, shares of the MACs, or the automatic choice.
        heads: what to put there, by the tap's shape (`dx.default_heads`).
        method: how samples are synthesized (`dx.synthesize`); ``n`` how many.
        minutes: time to take, instead of ``n`` and ``steps``, which are then planned by this machine's speed and what
            ``method`` takes on it.
        train: ``"frozen"`` distils the exits alone, and the full net stays the teacher bit for bit. ``"joint"`` then
            distils trunk and exits together (`dx.zeroshot.distill_jointly`, ``joint_steps``), for thin nets whose early
            layers have little to tell; what the last exit loses by that is taken off what may be lost.
        skip: also teach residual blocks to be skipped (`dynext.zeroshot.skip`, ``skip_steps`` steps): ``"skipnet"`` (or
            ``True``), ``"blockdrop"`` or ``"static"``. The trunk is trained for it; where skipping is not safe by the
            same rule as exits are, the trunk stays the teacher's.
        distill_on: samples to distil on instead of synthesizing some: a bank from before, or many unlabelled real
        samples.
        calibrate: a few hundred *unlabelled* real samples for temperatures, class biases and thresholds (agreement with
            the full net).
        distill_on_calibration: also distil on those samples. Thresholds are then chosen on answers of heads that have
            not seen the sample (cross-fitting).
        max_drop: accuracy that may be lost (share; .01 by default). ``budget``: share of the static net's MACs.
        folder: keep banks and training state here, so that an interrupted conversion goes on where it was; one folder
            for each conversion.

    Raises:
        SplitError, SourceError, PolicyError: what cannot be cut, fed or chosen, with what to do; a net that answers
            probabilities instead of logits is among it.
        FitError: options that exclude each other, or a folder that another conversion began in.
    """
    spec = spec_for(example, spec, calibrate, distill_on)
    check_rows(spec, distill_on=distill_on, calibrate=calibrate)
    check_wishes(max_drop, budget)
    if calibrate is None and distill_on_calibration:
        raise SourceError("distill_on_calibration needs samples to distil on; give calibrate= as well")
    if minutes is not None and distill_on is not None:
        raise FitError("minutes plans how many samples to make; with distill_on they are there, give steps instead")
    if train not in get_args(Train):
        raise FitError(f"train={train!r}; give 'frozen' (the exits alone) or 'joint' (the trunk as well)")
    kind = skipping_kind(skip)
    if kind is not None and train == "joint":
        raise FitError("skip trains the trunk in its own way; leave train='joint' out")
    keep = None if folder is None else Path(folder)
    net = _attached(teacher, spec, after, heads, around_blocks=kind is not None, seed=seed)
    check_logits(teacher, spec)
    if kind is None:  # skipping may cost less than the cheapest exit
        check_reach(budget, net)
    if keep is not None:
        asked: dict[str, Any] = {
            "teacher": fingerprint(teacher), "spec": asdict(spec), "exits": net.exit_names,
            "heads": digest_of([exit.spec for exit in net.exits]), "seed": seed, "train": train, "skip": kind,
            "distill_on": told_of(distill_on), "calibrate": told_of(calibrate),
            "distill_on_calibration": distill_on_calibration, "minutes": minutes,
        }  # fmt: skip
        if distill_on is None:
            asked["method"] = method
        if minutes is None:
            asked |= {"n": n, "steps": steps}
            asked |= {"joint_steps": joint_steps} if train == "joint" else {}
            asked |= {"skip_steps": skip_steps} if kind is not None else {}
        check_record(keep, asked)
    net.cost = measure(net)
    notify(f"split after {', '.join(net.exit_names[:-1])}")
    if minutes is not None:
        effort = effort_for(
            minutes,
            net,
            teacher,
            spec,
            method,
            trainings=(0.5 * (2 + FOLDS) if distill_on_calibration else 1.0) + (train == "joint" or kind is not None),
            joint=train == "joint" or kind is not None,
            further_rows=VIEWS * len(calibrate or ()) if distill_on_calibration else 0,
            judged_rows=0 if calibrate is not None else 2 * ROWS,
            judged_forwards=JUDGED_FORWARDS
            + DRIFT_FORWARDS * (train == "joint")
            + RULE_FORWARDS * len(KEEPS) * (kind is not None),
            keep=keep,
        )
        n, steps, joint_steps = effort.rows, effort.steps, effort.joint_steps
        skip_steps = effort.joint_steps
        notify(f"{n:,} samples and {steps:,} steps are planned, {effort.seconds:.0f} s")

    judging = free_seed(seed + 1, distill_on)

    def synthesized(kind: str, count: int) -> Bank:
        return _synthesized(teacher, spec, kind, count, judging, None, progress)

    def fit_heads(start: DynamicNet, rows: Features, name: str, share: float = 1.0) -> DynamicNet:
        return distill(
            start,
            None,
            rows,
            steps=round(share * steps),
            seed=seed,
            checkpoint=None if keep is None else keep / f"{name}.ckpt",
            accelerator=accelerator,
            progress=progress,
        )

    rows = distill_on if distill_on is not None else _synthesized(teacher, spec, method, n, seed, keep, progress)
    notify(f"{len(rows):,} samples to distil on")
    features = cache_features(net, teacher, rows, progress=progress)
    joint = None
    if train == "joint":
        net, joint = distill_jointly(
            fit_heads(net, features, "heads-before"),
            teacher,
            rows,
            steps=joint_steps,
            seed=seed,
            checkpoint=None if keep is None else keep / "joint.ckpt",
            accelerator=accelerator,
            progress=progress,
        )
        notify(str(joint.after))
        features = cache_features(net, None, rows, progress=progress)
    skipper = None
    if kind is not None:
        taught = teach_to_skip(
            net,
            teacher,
            rows,
            kind,
            steps=skip_steps,
            seed=seed,
            folder=keep,
            accelerator=accelerator,
            progress=progress,
        )
        skipped = cache_features(taught.net, teacher, rows, keep=taught.rules[-1], progress=progress)
        skipper = replace(taught, net=fit_heads(taught.net, skipped, "heads-skipping"))
        skipper.net.cost = net.cost
        notify(f"taught to skip {taught.net.num_gates} stages ({kind})")
    if calibrate is None:
        trained = fit_heads(net, features, "heads")
        found = choose_unseen(trained, teacher, synthesized, method, skipper=skipper, max_drop=max_drop, budget=budget)
        policy, table, shifted = found.policy, found.table, asdict(found.shift)
    else:
        calibrate, shifted = calibrate.unlabelled(), None
        if distill_on_calibration:
            seen = Views(rows=calibrate, count=VIEWS, seed=seed)
            trained, table = cross_fitted(
                net, cache_features(net, None, seen, progress=progress), features, fit_heads, len(calibrate), seed
            )
        else:
            trained = fit_heads(net, features, "heads")
            table = collect(trained, calibrate, rows=f"{len(calibrate):,} unlabelled samples")
            trained, table = recalibrated(trained, table)
        skipping = [] if skipper is None else skip_tables(skipper, teacher, calibrate, table.rows)
        policy = choose_cautiously(
            [table, *skipping],
            max_drop=max_drop,
            budget=budget,
            caution=1.0 if distill_on_calibration and skipper is None else CAUTION,
            spent=0.0 if joint is None else lost_by_drift(trained, teacher, calibrate),
        )
        table = table_under(policy, [table, *skipping])
    if skipper is not None and policy.skip_rule is not None:
        trained = skipper.net
    notify(f"distilled {len(net.exits)} exits")
    provenance = {
        "method": rows.provenance.method if isinstance(rows, Bank) else "given samples",
        "rows": len(rows),
        "steps": steps,
        "seed": seed,
        "train": train,
        "joint": None if joint is None else joint.to_dict(),
        "skip": None if skipper is None else {**skipper.told, "steps": skip_steps},
        "distilled_on_pixels": pixels_digest(calibrate) if calibrate is not None and distill_on_calibration else None,
        "calibration_rows": 0 if calibrate is None else len(calibrate),
        "distilled_on_calibration": distill_on_calibration,
        "shift": shifted,
        "torch": torch.__version__,
    }
    return Conversion(net=trained, policy=policy, table=table, spec=spec, rows=rows, provenance=provenance)


def _attached(
    teacher: nn.Module, spec: InputSpec, after: Any, heads: Heads | None, *, around_blocks: bool, seed: int
) -> DynamicNet:
    example = torch.zeros(1, *spec.shape).to(next(teacher.parameters()))
    if around_blocks:
        return attach_around_blocks(teacher, example, after, heads, seed=seed)
    staged = split(teacher, example, after)
    return attach(staged, heads or default_heads(staged.num_classes), seed=seed)


def _synthesized(
    teacher: nn.Module, spec: InputSpec, method: str, n: int, seed: int, keep: Path | None, progress: bool
) -> Bank:
    folder = None if keep is None else keep / f"bank-{method}-{seed}"
    return synthesize(
        teacher, shape=spec.shape, n=n, seed=seed, method=method, spec=spec, folder=folder, progress=progress
    )
