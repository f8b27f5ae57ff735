"""Align exits: each learns to answer, and to see samples as the last exit sees them; what aligned them is taken off."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor
from typing_extensions import Unpack

from dynext.align.augmentations import Augmentations
from dynext.align.batches import AlignmentSampler, CachedFeatureSampler, TrainedTrunkSampler
from dynext.align.losses import Loss, Term, loss_name, term_of
from dynext.align.monitor import SNAPSHOTS, Monitor, take_snapshot
from dynext.align.objective import Objective
from dynext.align.projection_heads import ProjectionHeads
from dynext.align.result import Alignment
from dynext.align.settings import AlignmentSettings, AlignmentTerm, FromTeacher, JointTrunk, Learn, Trunk
from dynext.data.content import Content
from dynext.data.given import LearnOptions, takes_data
from dynext.data.indexing import by_index, check_samples
from dynext.errors import FitError
from dynext.fitting import FitConfig, FitResult, check_same_run, configured, fit
from dynext.modules.modes import take_flags
from dynext.net.dynamic_net import DynamicNet
from dynext.train.drift import DriftGuard, drift_of, split_held_out
from dynext.train.frozen_teacher import Guide
from dynext.types import Data, Source
from dynext.usual_modes import in_usual_modes

TRUNK_LR = 1e-4

USUAL = FitConfig(steps=2000, lr=2e-3, trunk_lr=TRUNK_LR, batch_size=128)


@in_usual_modes
@takes_data("source")
def align_exits(
    net: DynamicNet,
    source: Data,
    config: FitConfig | None = None,
    *,
    term: AlignmentTerm | Loss | Term = "cosine",
    trunk: JointTrunk | Trunk = "frozen",
    learn: FromTeacher | Learn = "teacher",
    classes: Sequence[int] | None = None,
    augmentations: Augmentations | None = None,
    **options: Unpack[LearnOptions],
) -> Alignment:
    """A copy of ``net`` whose early exits see samples as its last exit does, and answer as well as before.

    Loss: classification, plus the weight of ``term`` times that term. The projection heads that the term compares
    embeddings through are taken off afterwards. The last exit is bit for bit the same with a frozen trunk; with a joint
    one it is held near the static net, as in `dynext.zeroshot.distill_jointly`. The trunk's buffers never change.

    Args:
        config: how to train, as a whole or field by field (``steps=600, seed=1``); without it 2000 steps of Adam on
            batches of 128 at a rate of 2e-3, cosine schedule. ``trunk_lr``, 1e-4 without it, is a joint trunk's.
        term: the aligning loss, or an `AlignmentTerm` with its weight and heads; a function
            ``(early_e, final_bd, y_b)`` for one of one's own (`dynext.align.losses.Term`).
        trunk: ``"frozen"``, or ``"joint"`` to train it as well; a `JointTrunk` says how far it may drift.
        learn: ``"teacher"`` distils the full net's answers into the exits and never looks at a label (a `FromTeacher`
            says at which temperature); ``"labels"`` learns from labels (the loss ``"selfcon"`` then pulls samples of a
            class together, too).
        classes: the only classes that exits learn answers for; samples of others (by label, or by the full net's
            answer) still take part in alignment. For exits that are to meet classes they know nothing of, leave such
            samples out.
        augmentations: random views of images; samples as they are without it.

    Raises:
        FitError: no early exit, a cascade, no linear layer at the end, figures out of range, or a batch of one.
        SourceError: too few samples, samples of another shape, or labels wanted where there are none.

    Source: the sum over early exits of D(q(g_e(f_e)), stopgrad g_E(f_E)) of SimSiam, and its siblings (`term_of`).
    SelfCon, Bae et al., AAAI 2023, arXiv:2106.15499, has the exits of one net as views, and a single view of each
    sample.
    """
    config = replace(configured(USUAL, config, options), label="aligning exits")
    if config.trunk_lr is None:
        config = replace(config, trunk_lr=TRUNK_LR)
    settings = AlignmentSettings.of(term, trunk, learn, classes, augmentations)
    _check(net, source, settings, config)
    student = copy.deepcopy(net).requires_grad_(False)
    sampler, guard = _sampler(net, student, source, settings, config)
    head_sizes = {"hidden": settings.term.hidden, "size": settings.term.size}
    space = ProjectionHeads.of(net, settings.term.loss, **head_sizes, seed=config.seed)
    trained = _Trained(student, space, guard, settings.identity(config))
    result = _train(trained, sampler, settings, config)
    device = next(net.parameters()).device
    student.to(device)
    take_flags(student, net)
    student.seen = net.seen | Content.of(source)
    return Alignment(
        net=student,
        space=space.to(device).eval().requires_grad_(False),
        loss=loss_name(settings.term.loss),
        weight=settings.term.effective_weight,
        trunk=settings.trunk,
        steps=config.steps,
        rows=sampler.num_samples,
        snapshots=tuple(trained.monitor.snapshots),
        dropped=trained.monitor.dropped,
        drift=None if guard is None else drift_of(student, guard.guide, guard.batches),
        seconds=result.seconds,
    )


def _sampler(
    net: DynamicNet, student: DynamicNet, source: Source, settings: AlignmentSettings, config: FitConfig
) -> tuple[AlignmentSampler, DriftGuard | None]:
    """Where batches come from, and for a joint trunk what holds the last exit near the static net."""
    augmentations, labelled = settings.augmentations, settings.teacher is None
    if settings.joint is None:
        cached = CachedFeatureSampler(
            net, source, augmentations, labelled=labelled, seed=config.seed, progress=config.progress
        )
        return cached, None
    student.staged.requires_grad_(True)
    train_n, held_out_n = split_held_out(source, config.seed)
    guide = Guide.of(net.staged, "batch" if source.bn == "batch" else "frozen")
    guard = DriftGuard(student, guide, by_index(source)(held_out_n).x, settings.joint.max_drift)
    return TrainedTrunkSampler(guide, source, train_n, augmentations, labelled=labelled), guard


def _train(trained: _Trained, sampler: AlignmentSampler, settings: AlignmentSettings, config: FitConfig) -> FitResult:
    term, steps = settings.term, config.steps
    guard, monitor = trained.guard, trained.monitor
    every = max(1, steps // SNAPSHOTS)
    objective = Objective(
        space=trained.space,
        term=term_of(term.loss, temperature=term.contrast),
        temperature=settings.temperature,
        classes=settings.classes,
        last_too=guard is not None,
    )

    def step(_: torch.nn.Module, draw: Generator, done: float) -> Tensor:
        t = round(done * steps)
        if guard is not None and t and t % every == 0:
            guard.check(t)
        losses = objective.losses(sampler.draw(trained, config.batch_size, draw))
        recorded = t % every == 0 or t == steps - 1
        if not recorded and not term.drop_conflicts:
            return losses.classification + term.effective_weight * losses.alignment
        total, cosine = monitor.combine(
            losses.classification, losses.alignment, term.effective_weight, trained.shared, drop=term.drop_conflicts
        )
        if recorded:
            snapshot = take_snapshot(t, losses.classification, losses.alignment, losses.projected_e, cosine)
            monitor.snapshots.append(snapshot)
        return total

    slow = (config.trunk_lr or 0.0) / config.lr
    result = fit(
        trained, step, config, share=lambda part: slow * trained.rate if part == "staged" else 1.0, modes="given"
    )
    if guard is not None and steps and guard.checks[-1].step != steps:
        guard.check(steps)
    return result


class _Trained(DynamicNet):
    """The student's very parts beside the heads, and what a resumed run must know beside weights."""

    def __init__(
        self, net: DynamicNet, space: ProjectionHeads, guard: DriftGuard | None, identity: dict[str, Any]
    ) -> None:
        super().__init__(net.staged, net.exits, net.gates)
        self.space, self.guard, self.identity, self.monitor = space, guard, identity, Monitor()
        self.eval()
        for part in (*net.exits, space):
            part.requires_grad_(True).train()

    @property
    def rate(self) -> float:
        """Share of the trunk's learning rate."""
        return 1.0 if self.guard is None else self.guard.rate

    @property
    def shared(self) -> list[Tensor]:
        """What both losses train: the exits' embedders, and the trunk where it is trained."""
        parts = [*(exit.embedder for exit in self.exits), self.staged]
        return [p for part in parts for p in part.parameters() if p.requires_grad]

    # The keys below, and `space` above, stand in checkpoints.
    def get_extra_state(self) -> dict[str, Any]:
        guard_state = None if self.guard is None else self.guard.state()
        return {"options": self.identity, "watch": self.monitor.state(), "leash": guard_state}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        check_same_run(state["options"], self.identity)
        self.monitor.resume(state["watch"])
        if self.guard is not None:
            self.guard.resume(state["leash"])


def _check(net: DynamicNet, source: Source, settings: AlignmentSettings, config: FitConfig) -> None:
    if not len(net.exits):
        raise FitError("the net has no early exit to align; attach some (dx.attach)")
    if net.cascade is not None:
        raise FitError("exits of a cascade hand on logits, they have no embeddings; give the net it was made of")
    if config.batch_size < 2:
        raise FitError(
            f"batch_size={config.batch_size}; alignment compares samples with each other (negatives, variances, "
            f"BatchNorm), give at least 2"
        )
    classes = settings.classes
    if classes is not None and (len(classes) < 2 or not 0 <= min(classes) <= max(classes) < net.num_classes):
        raise FitError(f"classes {classes} of a net with {net.num_classes}; give at least two, from 0")
    check_samples(source, net.staged.input_shape, least=4)  # some are held out, the others compared with each other
