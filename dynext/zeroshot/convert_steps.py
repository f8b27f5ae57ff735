"""The steps of a conversion, in their order. Each can be read alone; `dynext.zeroshot.convert` puts them together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from dynext.fitting import FitOptions
from dynext.graph.split import split
from dynext.modules.exits import default_heads
from dynext.net.attach import attach
from dynext.net.collect import collect
from dynext.net.dynamic_net import DynamicNet
from dynext.net.features import Features, cache_features
from dynext.net.measure import measure
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable
from dynext.train.drift import lost_by_drift
from dynext.types import Source
from dynext.zeroshot.bank import Bank
from dynext.zeroshot.convert_checks import ConversionTask, check_reach, check_record, pixels_digest
from dynext.zeroshot.costly import cost_notes
from dynext.zeroshot.cross_fit import FOLDS, Views, cross_fitted, recalibrated
from dynext.zeroshot.distill import distill
from dynext.zeroshot.few_images import Judged, too_few, without_images
from dynext.zeroshot.joint import JointReport, distill_jointly
from dynext.zeroshot.rounds import free_seed
from dynext.zeroshot.settings import Joint, Skip, Synthesis
from dynext.zeroshot.shift import Shift
from dynext.zeroshot.skip import KEEPS, Skipper, attach_around_blocks, teach_to_skip
from dynext.zeroshot.synth.method import Method
from dynext.zeroshot.synth.registry import chosen
from dynext.zeroshot.synth.synthesize import synthesize
from dynext.zeroshot.thresholds import (
    CAUTION,
    Unseen,
    choose_cautiously,
    choose_unseen,
    rows_to_judge,
    skip_tables,
    table_under,
)
from dynext.zeroshot.time_budget import (
    DRIFT_FORWARDS,
    JUDGED_FORWARDS,
    RULE_FORWARDS,
    Workload,
    effort_for,
)

log = logging.getLogger("dynext")


def attached(task: ConversionTask) -> DynamicNet:
    """The teacher as stages with untrained exits, their times measured; skipping needs stages around residual
    blocks.
    """
    example = torch.zeros(1, *task.spec.shape).to(next(task.teacher.parameters()))
    after, heads, seed = task.exits.after, task.exits.heads, task.run.seed
    if isinstance(task.training, Skip):
        net = attach_around_blocks(task.teacher, example, after, heads, seed=seed)
    else:
        staged = split(task.teacher, example, after)
        net = attach(staged, heads or default_heads(staged.num_classes), seed=seed)
    for note in net.staged.notes:
        log.warning("%s", note)
    if not isinstance(task.training, Skip):
        check_reach(task, net)  # skipping may cost less than the cheapest exit
    check_record(task, net)
    net.spec = task.spec if task.spec_known else None
    net.cost = measure(net)
    log.info("split after %s", ", ".join(net.exit_names[:-1]))
    return net


def planned(task: ConversionTask, net: DynamicNet) -> ConversionTask:
    """The task with as many samples and steps as the minutes allow; as it is where nobody set a time."""
    if task.run.minutes is None:
        return task
    effort = effort_for(
        task.run.minutes, net, task.teacher, task.spec, task.method, workload(task), folder=task.run.folder
    )
    log.info("%s samples and %s steps are planned, %.0f s", f"{effort.rows:,}", f"{effort.steps:,}", effort.seconds)
    training = replace(task.training, steps=effort.steps)
    if isinstance(training, Joint):
        training = replace(training, joint_steps=effort.joint_steps)
    if isinstance(training, Skip):
        training = replace(training, skip_steps=effort.joint_steps)
    synthesis = task.synthesis
    if isinstance(synthesis, Synthesis):
        synthesis = replace(synthesis, n=effort.rows)
    return replace(task, training=training, synthesis=synthesis)


def workload(task: ConversionTask) -> Workload:
    """What there is to do beside synthesizing and distilling once, for a time budget."""
    joint, skip, images = isinstance(task.training, Joint), isinstance(task.training, Skip), task.calibrate
    cross_fit = images is not None and images.distill
    return Workload(
        given=None if task.given is None else len(task.given),
        trainings=(0.5 * (2 + FOLDS) if cross_fit else 1.0) + (joint or skip),
        joint=joint or skip,
        further=images.views * len(images.samples) if images is not None and cross_fit else 0,
        judged=2 * rows_to_judge(task.num_samples) if images is None or few_images(task) else 0,
        judged_forwards=JUDGED_FORWARDS + DRIFT_FORWARDS * joint + RULE_FORWARDS * len(KEEPS) * skip,
    )


def samples_to_distil_on(task: ConversionTask) -> Source:
    """The samples that were given, or a bank of synthesized ones."""
    samples = task.given
    if isinstance(task.synthesis, Synthesis):
        wanted = task.synthesis
        folder = None
        if task.run.folder is not None:
            name = chosen(wanted.method).name.replace(":", ".").replace("<", "").replace(">", "")
            folder = task.run.folder / f"bank-{name}-{task.run.seed}"
        samples = synthesize(
            task.teacher,
            shape=task.spec.shape,
            n=wanted.n,
            seed=task.run.seed,
            method=wanted.method,
            spec=task.spec,
            folder=folder,
            progress=task.run.progress,
            **wanted.options,
        )
    assert samples is not None  # noqa: S101  one of the two
    log.info("%s samples to distil on", f"{len(samples):,}")
    return samples


@dataclass(frozen=True, kw_only=True, eq=False)
class Students:
    """The net whose heads are still to be fitted, with what they see of the samples; and its twin that skips."""

    net: DynamicNet
    features: Features
    fit_heads: Callable[[DynamicNet, Features, str, float], DynamicNet]
    """``fit_heads(net, features, name, share)``: heads distilled for a share of the steps."""
    joint: JointReport | None = None
    skipper: Skipper | None = None


def taught(task: ConversionTask, net: DynamicNet, samples: Source) -> Students:
    """The trunk trained as the task says, or left alone, and what heads see of the samples."""
    features = cache_features(net, task.teacher, samples, progress=task.run.progress)
    students = Students(net=net, features=features, fit_heads=_head_fitter(task))
    if isinstance(task.training, Joint):
        return _jointly(task, task.training, students, samples)
    if isinstance(task.training, Skip):
        return replace(students, skipper=_skipping(task, task.training, students, samples))
    return students


def _head_fitter(task: ConversionTask) -> Callable[[DynamicNet, Features, str, float], DynamicNet]:
    def fit_heads(start: DynamicNet, features: Features, name: str, share: float = 1.0) -> DynamicNet:
        return distill(start, None, features, **_carried_out(task, name, round(share * task.training.steps)))

    return fit_heads


def _carried_out(task: ConversionTask, name: str, steps: int) -> FitOptions:
    """How every training of a conversion is carried out."""
    return {
        "steps": steps,
        "seed": task.run.seed,
        "checkpoint": task.checkpoint(name),
        "accelerator": task.run.accelerator,
        "progress": task.run.progress,
    }


def _jointly(task: ConversionTask, training: Joint, students: Students, samples: Source) -> Students:
    net, report = distill_jointly(
        students.fit_heads(students.net, students.features, "heads-before", 1.0),
        task.teacher,
        samples,
        **_carried_out(task, "joint", training.joint_steps),
    )
    log.info("%s", report.after)
    features = cache_features(net, None, samples, progress=task.run.progress)
    return replace(students, net=net, features=features, joint=report)


def _skipping(task: ConversionTask, training: Skip, students: Students, samples: Source) -> Skipper:
    learned = teach_to_skip(
        students.net,
        task.teacher,
        samples,
        training.kind,
        **_carried_out(task, training.kind, training.skip_steps),
    )
    seen = cache_features(learned.net, task.teacher, samples, keep=learned.rules[-1], progress=task.run.progress)
    net = students.fit_heads(learned.net, seen, "heads-skipping", 1.0)
    net.cost = students.net.cost
    log.info("taught to skip %d stages (%s)", learned.net.num_gates, training.kind)
    return replace(learned, net=net)


@dataclass(frozen=True, kw_only=True, eq=False)
class Decided:
    """The finished net, when it stops, and the table by which that was decided."""

    net: DynamicNet
    policy: Policy
    table: ExitTable
    shift: Shift | None = None


def decided_without_images(task: ConversionTask, students: Students) -> Decided:
    """Thresholds from further synthesized samples of two kinds."""
    net = students.fit_heads(students.net, students.features, "heads", 1.0)
    unseen = _unseen(task, net, students.skipper)
    log.info("distilled %d exits", len(net.exits))
    return _as_decided(net, unseen.policy, unseen.table, students.skipper, unseen.shift)


def _unseen(task: ConversionTask, net: DynamicNet, skipper: Skipper | None) -> Unseen:
    seed = free_seed(task.run.seed + 1, task.given)

    def synthesized(method: Method, count: int) -> Bank:
        shape, options = task.spec.shape, {}
        if isinstance(task.synthesis, Synthesis) and method == task.synthesis.method:
            options = dict(task.synthesis.options)
        count = min(count, rows_to_judge(task.num_samples))
        return synthesize(
            task.teacher, shape=shape, n=count, seed=seed, method=method, spec=task.spec, progress=task.run.progress,
            **options,
        )  # fmt: skip

    return choose_unseen(net, task.teacher, synthesized, task.method, skipper=skipper, **asdict(task.target))


def decided(task: ConversionTask, students: Students) -> Decided:
    """Thresholds, class biases and temperatures from unlabelled samples, which exits may have learned from as well.

    Where these are too few to judge by, they only object to what would be chosen without them.
    """
    images = task.calibrate
    assert images is not None  # noqa: S101  `convert` has looked
    if images.distill:
        views = Views(rows=images.samples, count=images.views, seed=task.run.seed)
        seen = cache_features(students.net, None, views, progress=task.run.progress)
        net, table = cross_fitted(
            students.net, seen, students.features, students.fit_heads, len(images.samples), task.run.seed
        )
        plain = Decided(net=net, policy=Policy.never(net.num_exits), table=table)
    else:
        net = students.fit_heads(students.net, students.features, "heads", 1.0)
        table = collect(net, images.samples, rows=f"{len(images.samples):,} unlabelled samples")
        plain = Decided(net=net, policy=Policy.never(net.num_exits), table=table)
        net, table = recalibrated(net, table)
    skipper = students.skipper
    skipping = [] if skipper is None else skip_tables(skipper, task.teacher, images.samples, table.rows)
    tables = [table, *skipping]
    policy = choose_cautiously(
        tables,
        **asdict(task.target),
        caution=1.0 if images.distill and skipper is None else CAUTION,
        spent=0.0 if students.joint is None else lost_by_drift(net, task.teacher, images.samples),
    )
    log.info("distilled %d exits", len(net.exits))
    by_images = _as_decided(net, policy, table_under(policy, tables), skipper, None)
    return _decided_by_few(task, plain, skipping, by_images, skipper) or by_images


def few_images(task: ConversionTask) -> bool:
    """Whether the images are too few to judge the loss by that is asked for."""
    loss = task.target.loss
    return bool(task.calibrate and loss and too_few(len(task.calibrate.samples), CAUTION * loss))


def _decided_by_few(
    task: ConversionTask, plain: Decided, skipping: list[ExitTable], by_images: Decided, skipper: Skipper | None
) -> Decided | None:
    """What would be decided without the images where that saves more and they do not contradict it."""
    if not few_images(task):
        return None
    unseen = _unseen(task, plain.net, skipper)
    known = Judged(policy=unseen.policy, table=table_under(unseen.policy, [plain.table, *skipping]))
    loss = task.target.loss or 0.0
    judged = Judged(policy=by_images.policy, table=by_images.table)
    taken = without_images(known, judged, max_drop=loss, allowed=CAUTION * loss)
    if taken is None:
        return None
    return _as_decided(plain.net, taken.policy, taken.table, skipper, unseen.shift)


def _as_decided(
    net: DynamicNet, policy: Policy, table: ExitTable, skipper: Skipper | None, shift: Shift | None
) -> Decided:
    """The net that the policy is for: where it skips, the one that learned to."""
    skips = skipper is not None and policy.skip_rule is not None
    return Decided(net=skipper.net if skipper is not None and skips else net, policy=policy, table=table, shift=shift)


def told(task: ConversionTask, samples: Source, students: Students, outcome: Decided) -> dict[str, Any]:
    """The record of the conversion: its settings, and what was found out on the way."""
    images, skipper = task.calibrate, students.skipper
    notes = cost_notes(outcome.net, outcome.policy, outcome.table)
    for note in notes:
        log.warning("%s", note)
    return {
        **task.record(),
        "notes": notes,
        "method": samples.provenance.method if isinstance(samples, Bank) else "given samples",
        "rows": len(samples),
        "seed": task.run.seed,
        "joint": None if students.joint is None else students.joint.to_dict(),
        "skip": None if skipper is None else skipper.record,
        "distilled_on_pixels": pixels_digest(images.samples) if images is not None and images.distill else None,
        "calibration_rows": 0 if images is None else len(images.samples),
        "shift": None if outcome.shift is None else asdict(outcome.shift),
        "torch": torch.__version__,
    }
