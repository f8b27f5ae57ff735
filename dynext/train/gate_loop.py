"""What every way of training gates shares: the loop around a step, what is written down of it, and its settings.

Shapes: b samples, g gated stages.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Generator, Tensor, nn

from dynext.errors import FitError
from dynext.fitting import FitConfig, Precision, check_same_run, fit
from dynext.modules.modes import take_flags
from dynext.net.dynamic_net import DynamicNet
from dynext.net.masked_pass import gates_of
from dynext.train.batches import TaughtBatch, TaughtBatches
from dynext.train.frozen_teacher import BesideMode
from dynext.types import Source

MOMENTS = 50
"""How often, spread over a run, its figures are written down."""


@dataclass(frozen=True, kw_only=True)
class GateFit:
    """How to train gates; the methods' own figures are their arguments."""

    steps: int
    lr: float
    trunk_lr: float = 0.0
    """Learning rate of the stages; 0 leaves them as they are, bit for bit."""
    batch_size: int = 128
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "onecycle", "milestones"] = "cosine"
    seed: int = 0
    augmented: bool = False
    """Shift and mirror the images."""
    bn: BesideMode = "frozen"
    """With a teacher: which statistics both nets normalize by (`dynext.train.frozen_teacher`)."""
    checkpoint: Path | None = None
    accelerator: str = "cpu"
    precision: Precision = "32-true"
    progress: bool = True

    def __post_init__(self) -> None:
        if not self.lr > 0 or self.trunk_lr < 0 or self.batch_size < 1:
            raise FitError(
                f"lr={self.lr}, trunk_lr={self.trunk_lr}, batch_size={self.batch_size}; give a positive rate, "
                f"a trunk's that is not negative, and at least one sample"
            )


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Figures of one step, means over its batch."""

    step: int
    loss: float
    """Cross-entropy of the path that was taken."""
    reward: float
    baseline: float
    """What the reward is compared with; 0 where it is with nothing."""
    kept: tuple[float, ...]
    """Share of the samples that ran each gated stage."""
    paths: int
    """Different sets of stages that were run."""


@dataclass(frozen=True, kw_only=True)
class GateTraining:
    """How a run went: some of its moments, the last step's among them, and the seconds of this process."""

    method: str
    steps: int
    moments: tuple[Moment, ...]
    seconds: float
    resumed_at: int

    def __str__(self) -> str:
        if not self.moments:
            return f"{self.method}: no step"
        last = self.moments[-1]
        kept = ", ".join(f"{share:.0%}" for share in last.kept)
        return (
            f"{self.method}, {self.steps:,} steps: loss {last.loss:.3f}, reward {last.reward:.3f} "
            f"(baseline {last.baseline:.3f}), stages run {kept}, {last.paths} paths in the last batch"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Stepped:
    """What a method's step gives: the loss to descend, and what to write down of it."""

    loss: Tensor
    cross_entropy: Tensor
    reward_b: Tensor
    baseline_b: Tensor
    run_bg: Tensor

    def moment(self, step: int) -> Moment:
        return Moment(
            step=step,
            loss=float(self.cross_entropy.detach()),
            reward=float(self.reward_b.detach().mean()),
            baseline=float(self.baseline_b.detach().mean()),
            kept=tuple(self.run_bg.detach().mean(0).tolist()),
            paths=len(self.run_bg.detach().unique(dim=0)),
        )


class Trainee(DynamicNet):
    """The student's very parts, with what a resumed run must know beside its weights."""

    def __init__(self, net: DynamicNet, options: dict[str, Any]) -> None:
        super().__init__(net.staged, net.exits, net.gates)
        self.options = options
        self.moments: list[Moment] = []

    def get_extra_state(self) -> dict[str, Any]:
        return {"options": self.options, "moments": [asdict(moment) for moment in self.moments]}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        check_same_run(state["options"], self.options)
        self.moments = [Moment(**{**moment, "kept": tuple(moment["kept"])}) for moment in state["moments"]]


MethodStep = Callable[[DynamicNet, TaughtBatch, Generator, float], Stepped]
"""``step(net, lesson, draw, done)``: one batch's figures, ``done`` the share of steps that are done."""


def train_gates(
    net: DynamicNet,
    source: Source,
    step: MethodStep,
    fitting: GateFit,
    *,
    method: str,
    teacher: nn.Module | None,
    options: dict[str, Any],
) -> tuple[DynamicNet, GateTraining]:
    """A copy of ``net`` whose gates, and stages if ``fitting.trunk_lr`` says so, were trained by ``step``.

    Gates are in training meanwhile. Stages that learn from labels are, too; with a teacher, or when they are left
    alone, they are in evaluation and keep every buffer bit for bit. Exits are left alone.

    Raises:
        FitError: the net has no gates, nothing to learn, or samples without labels and no teacher.
        SourceError: no samples, or samples of another shape than the model expects.
    """
    gates_of(net)
    lessons = TaughtBatches(source, net.staged, teacher, fitting.bn, augmented=fitting.augmented)
    student = copy.deepcopy(net)
    student.requires_grad_(False)
    student.staged.requires_grad_(fitting.trunk_lr > 0)
    gates_of(student).requires_grad_(True)
    known = ("trunk_lr", "batch_size", "weight_decay", "augmented", "bn")
    trainee = Trainee(student, {**options, **{name: getattr(fitting, name) for name in known}})
    trainee.eval()
    gates_of(trainee).train()
    trainee.staged.train(fitting.trunk_lr > 0 and teacher is None)
    every = max(1, fitting.steps // MOMENTS)

    def one(_: nn.Module, draw: Generator, done: float) -> Tensor:
        t = round(done * fitting.steps)
        like = next(trainee.parameters())
        with lessons.beside(trainee.staged, lessons.draw(fitting.batch_size, draw), like) as lesson:
            found = step(trainee, lesson, draw, done)
        if t % every == 0 or t == fitting.steps - 1:
            trainee.moments.append(found.moment(t))
        return found.loss

    config = FitConfig(
        steps=fitting.steps,
        lr=fitting.lr,
        optimizer=fitting.optimizer,
        weight_decay=fitting.weight_decay,
        schedule=fitting.schedule,
        seed=fitting.seed,
        checkpoint=None if fitting.checkpoint is None else Path(fitting.checkpoint),
        accelerator=fitting.accelerator,
        precision=fitting.precision,
        progress=fitting.progress,
        label=method,
        about=f"{lessons.num_rows:,} rows",
    )
    ratio = fitting.trunk_lr / fitting.lr
    done = fit(trainee, one, config, share=lambda part: ratio if part == "staged" else 1.0)
    student.to(next(net.parameters()).device)
    take_flags(student, net)
    return student, GateTraining(
        method=method,
        steps=fitting.steps,
        moments=tuple(trainee.moments),
        seconds=done.seconds,
        resumed_at=done.resumed_at,
    )
