"""Align exits: each learns to answer, and to see samples as the last exit sees them; what aligned them is taken off."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Generator, Tensor

from dynext.align.augmentations import Augmentations
from dynext.align.batches import Kept, Live, Shown
from dynext.align.losses import WEIGHTS, Loss, term_of
from dynext.align.monitor import LOOKS, Watch, look_at
from dynext.align.objective import Learn, Objective
from dynext.align.projection_heads import Space
from dynext.align.result import Alignment, Trunk
from dynext.data.indexing import by_index, check_samples
from dynext.errors import FitError
from dynext.fitting import FitConfig, check_same_run, fit
from dynext.modules.modes import take_flags
from dynext.net.dynamic_net import DynamicNet
from dynext.seeding import generator
from dynext.train.drift import DriftGuard, drift_of
from dynext.train.frozen_teacher import Guide
from dynext.types import Source

HELD_OUT = 512
"""Most samples on which a joint trunk's drift is measured; an eighth of the source where that is less."""


def align_exits(
    net: DynamicNet,
    source: Source,
    *,
    loss: Loss = "cosine",
    weight: float | None = None,
    trunk: Trunk = "frozen",
    learn: Learn = "teacher",
    classes: Sequence[int] | None = None,
    views: Augmentations | None = None,
    steps: int = 2000,
    seed: int = 0,
    batch_size: int = 128,
    lr: float = 2e-3,
    trunk_lr: float = 1e-4,
    temperature: float = 4.0,
    contrast: float = 0.1,
    hidden: int = 256,
    size: int = 128,
    drop_conflicts: bool = False,
    max_drift: float = 0.02,
    checkpoint: Path | str | None = None,
    accelerator: str = "cpu",
    progress: bool = True,
) -> Alignment:
    """A copy of ``net`` whose early exits see samples as its last exit does, and answer as well as before.

    Loss: classification plus ``weight`` times a term of `dynext.align.losses`. The heads that the term looks through
    are taken off afterwards. Adam, cosine schedule. The last exit is bit for bit the same with a frozen trunk; with a
    joint one it is held near the static net, as in `dynext.zeroshot.distill_jointly`. The trunk's buffers never change.

    Args:
        weight: what the term counts; `terms.WEIGHTS` without it, 0 for classification alone (the control).
        learn: ``"teacher"`` distils the full net's answers into the exits and never looks at a label; ``"labels"``
            learns from labels (``"selfcon"`` then pulls samples of a class together, too).
        classes: the only classes that exits learn answers for; samples of others (by label, or by the full net's
            answer) still take part in alignment. For exits that are to meet classes they know nothing of, leave such
            samples out.
        views: random views of images; samples as they are without it.
        temperature: of distillation; ``contrast`` is that of ``"ntxent"`` and ``"selfcon"``.
        hidden, size: of the heads' layers and of what they give.
        drop_conflicts: leave the term out of each step at which its gradient points away from classification's. Takes
            two further backward passes a step.
        max_drift: with a joint trunk, the share of held-out samples that the last exit may answer unlike the static
        net.
        checkpoint: file in which an interrupted run is kept and resumed from.

    Raises:
        FitError: no early exit, a cascade, no linear layer at the end, figures out of range, or a batch of one.
        SourceError: too few samples, samples of another shape, or labels wanted where there are none.

    Source: the sum over early exits of D(q(g_e(f_e)), stopgrad g_E(f_E)) of SimSiam, and its siblings (`term_of`).
    SelfCon, Bae et al., AAAI 2023, arXiv:2106.15499, has the exits of one net as views, and a single view of each
    sample.
    """
    weight = WEIGHTS.get(loss, 1.0) if weight is None else weight
    known = None if classes is None else tuple(dict.fromkeys(map(int, classes)))
    _check(net, source, weight, trunk, learn, known, batch_size, lr, trunk_lr, max_drift)
    if not temperature > 0 or min(hidden, size) < 1:
        raise FitError(f"temperature={temperature}, hidden={hidden}, size={size}; all of them are positive")
    term = term_of(loss, temperature=contrast)
    student = copy.deepcopy(net).requires_grad_(False)
    shown, leash = _shown(net, student, source, trunk, learn, views, seed, max_drift, progress)
    options = {
        "loss": loss,
        "weight": weight,
        "trunk": trunk,
        "learn": learn,
        "classes": None if known is None else list(known),
        "views": None if views is None else asdict(views),
        "batch_size": batch_size,
        "trunk_lr": trunk_lr,
        "temperature": temperature,
        "contrast": contrast,
        "drop_conflicts": drop_conflicts,
        "max_drift": max_drift,
    }
    trained = _Trained(student, Space.of(net, loss, hidden=hidden, size=size, seed=seed), leash, options)
    watch, every = trained.watch, max(1, steps // LOOKS)
    asked = Objective(space=trained.space, term=term, temperature=temperature, classes=known, whole=trunk == "joint")

    def step(_: torch.nn.Module, draw: Generator, done: float) -> Tensor:
        t = round(done * steps)
        if leash is not None and t and t % every == 0:
            leash.check(t)
        parts = asked.parts(shown.draw(trained, batch_size, draw))
        looking = t % every == 0 or t == steps - 1
        if not looking and not drop_conflicts:
            return parts.classification + weight * parts.alignment
        total, cosine = watch.weigh(parts.classification, parts.alignment, weight, trained.shared, drop=drop_conflicts)
        if looking:
            watch.looks.append(look_at(t, parts.classification, parts.alignment, parts.projected_e, cosine))
        return total

    config = FitConfig(
        steps=steps,
        lr=lr,
        seed=seed,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        accelerator=accelerator,
        progress=progress,
        label="aligning exits",
    )
    slow = trunk_lr / lr
    found = fit(trained, step, config, share=lambda part: slow * trained.rate if part == "staged" else 1.0)
    if leash is not None and steps and leash.checks[-1].step != steps:
        leash.check(steps)
    device = next(net.parameters()).device
    student.to(device)
    take_flags(student, net)
    return Alignment(
        net=student,
        space=trained.space.to(device).eval().requires_grad_(False),
        loss=loss,
        weight=weight,
        trunk=trunk,
        steps=steps,
        rows=len(source) if leash is None else len(source) - _held_out(source),
        looks=tuple(watch.looks),
        dropped=watch.dropped,
        drift=None if leash is None else drift_of(student, leash.guide, leash.batches),
        seconds=found.seconds,
    )


def _shown(
    net: DynamicNet,
    student: DynamicNet,
    source: Source,
    trunk: Trunk,
    learn: Learn,
    views: Augmentations | None,
    seed: int,
    max_drift: float,
    progress: bool,
) -> tuple[Shown, DriftGuard | None]:
    """Where lessons come from, and for a joint trunk what holds the last exit near the static net."""
    labelled = learn == "labels"
    if trunk == "frozen":
        return Kept(net, source, views, labelled=labelled, seed=seed, progress=progress), None
    student.staged.requires_grad_(True)
    order = torch.randperm(len(source), generator=generator(seed))
    held_out, train_n = order[: _held_out(source)], order[_held_out(source) :]
    guide = Guide.of(net.staged, "batch" if source.bn == "batch" else "frozen")
    leash = DriftGuard(student, guide, by_index(source)(held_out).x, max_drift)
    return Live(guide, source, train_n, views, labelled=labelled), leash


def _held_out(source: Source) -> int:
    return min(HELD_OUT, max(len(source) // 8, 1))


class _Trained(DynamicNet):
    """The student's very parts beside the heads, and what a resumed run must know beside weights."""

    def __init__(self, net: DynamicNet, space: Space, leash: DriftGuard | None, options: dict[str, Any]) -> None:
        super().__init__(net.staged, net.exits, net.gates)
        self.space, self.leash, self.options, self.watch = space, leash, options, Watch()
        self.eval()
        for part in (*net.exits, space):
            part.requires_grad_(True).train()

    @property
    def rate(self) -> float:
        """Share of the trunk's learning rate."""
        return 1.0 if self.leash is None else self.leash.rate

    @property
    def shared(self) -> list[Tensor]:
        """What both losses train: the exits' embedders, and the trunk where it is trained."""
        parts = [*(exit.embedder for exit in self.exits), self.staged]
        return [p for part in parts for p in part.parameters() if p.requires_grad]

    def get_extra_state(self) -> dict[str, Any]:
        kept = None if self.leash is None else self.leash.state()
        return {"options": self.options, "watch": self.watch.state(), "leash": kept}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        check_same_run(state["options"], self.options)
        self.watch.resume(state["watch"])
        if self.leash is not None:
            self.leash.resume(state["leash"])


def _check(
    net: DynamicNet,
    source: Source,
    weight: float,
    trunk: str,
    learn: str,
    classes: tuple[int, ...] | None,
    batch_size: int,
    lr: float,
    trunk_lr: float,
    max_drift: float,
) -> None:
    if not len(net.exits):
        raise FitError("the net has no early exit to align; attach some (dx.attach)")
    if net.cascade is not None:
        raise FitError("exits of a cascade hand on logits, they have no embeddings; give the net it was made of")
    if trunk not in get_args(Trunk) or learn not in get_args(Learn):
        raise FitError(f"trunk={trunk!r}, learn={learn!r}; give 'frozen' or 'joint', and 'teacher' or 'labels'")
    if weight < 0 or not lr > 0 or trunk_lr < 0 or not 0 <= max_drift <= 1:
        raise FitError(f"weight={weight}, lr={lr}, trunk_lr={trunk_lr}, max_drift={max_drift}; none may be negative")
    if batch_size < 2:
        raise FitError(
            f"batch_size={batch_size}; alignment compares samples with each other (negatives, variances, BatchNorm), "
            f"give at least 2"
        )
    if classes is not None and (len(classes) < 2 or not 0 <= min(classes) <= max(classes) < net.num_classes):
        raise FitError(f"classes {classes} of a net with {net.num_classes}; give at least two, from 0")
    check_samples(source, net.staged.input_shape, least=4)  # some are held out, the others compared with each other
