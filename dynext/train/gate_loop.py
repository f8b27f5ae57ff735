"""What every way of training gates shares: the loop around a method's step, and what is written down of it.

Shapes: b samples, g gated stages.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Generator, Tensor, nn

from dynext.brief import short_repr
from dynext.fitting import FitConfig, check_same_run, fit
from dynext.modules.modes import take_flags
from dynext.net.dynamic_net import DynamicNet
from dynext.net.masked_pass import gates_of
from dynext.train.batches import TaughtBatch, TaughtBatches

RECORDS = 50
"""How often, spread over a run, its figures are written down."""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """Figures of one step, means over its batch."""

    step: int
    loss: float
    """Cross-entropy of the path that was taken."""
    reward: float
    baseline: float
    """What the reward is compared with; 0 where it is compared with nothing."""
    kept: tuple[float, ...]
    """Share of the samples that ran each gated stage."""
    paths: int
    """Different sets of stages that were run."""


@dataclass(frozen=True, kw_only=True)
class GateHistory:
    """How a training of gates went: figures of some steps, the last one among them, and the seconds of this process."""

    __repr__ = short_repr

    method: str
    steps: int
    records: tuple[StepRecord, ...]
    seconds: float
    resumed_at: int

    def __str__(self) -> str:
        if not self.records:
            return f"{self.method}: no step"
        last = self.records[-1]
        kept = ", ".join(f"{share:.0%}" for share in last.kept)
        return (
            f"{self.method}, {self.steps:,} steps: loss {last.loss:.3f}, reward {last.reward:.3f} "
            f"(baseline {last.baseline:.3f}), stages run {kept}, {last.paths} paths in the last batch"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class GateStep:
    """What a method's step gives: the loss to descend, and what to write down of it."""

    loss: Tensor
    cross_entropy: Tensor
    run_bg: Tensor
    """1 where a sample ran a gated stage, 0 where it skipped it."""
    reward_b: Tensor | None = None
    """Of each sample; ``None`` where nothing is rewarded."""
    baseline_b: Tensor | None = None
    """What the reward was compared with; ``None`` where with nothing."""

    def record(self, step: int) -> StepRecord:
        return StepRecord(
            step=step,
            loss=float(self.cross_entropy.detach()),
            reward=0.0 if self.reward_b is None else float(self.reward_b.detach().mean()),
            baseline=0.0 if self.baseline_b is None else float(self.baseline_b.detach().mean()),
            kept=tuple(self.run_bg.detach().mean(0).tolist()),
            paths=len(self.run_bg.detach().unique(dim=0)),
        )


MethodStep = Callable[[DynamicNet, TaughtBatch, Generator, float], GateStep]
"""``step(net, batch, draw, done)``: one batch's loss and figures, ``done`` the share of steps that are done."""


class GateStudent(DynamicNet):
    """The very parts of the net that learns, with what a resumed run must know beside its weights."""

    def __init__(self, net: DynamicNet, options: dict[str, Any], *, trunk_learns: bool) -> None:
        super().__init__(net.staged, net.exits, net.gates)
        self.options = options
        self.records: list[StepRecord] = []
        self.requires_grad_(False)
        self.staged.requires_grad_(trunk_learns)
        gates_of(self).requires_grad_(True)

    def get_extra_state(self) -> dict[str, Any]:
        # "moments" is what checkpoints have called the records from the first
        return {"options": self.options, "moments": [asdict(record) for record in self.records]}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        check_same_run(state["options"], self.options)
        self.records = [StepRecord(**{**record, "kept": tuple(record["kept"])}) for record in state["moments"]]


def train_gates(
    net: DynamicNet,
    batches: TaughtBatches,
    step: MethodStep,
    config: FitConfig,
    *,
    method: str,
    options: dict[str, Any],
) -> tuple[DynamicNet, GateHistory]:
    """A copy of ``net`` whose gates were trained by ``step``, and its stages too if ``config.trunk_lr`` is positive.

    Gates are in training mode meanwhile. Stages that learn from labels are, too; with a teacher, or without a learning
    rate of their own, they are in evaluation and keep every buffer bit for bit. Exits are left alone.

    Args:
        method: its name, for the history and the checkpoint.
        options: the method's own figures; a checkpoint is resumed by a run of the same ones.

    Raises:
        PolicyError: the net has no gates.
        FitError: nothing to train, or a checkpoint of another run.
    """
    gates_of(net)
    trunk_lr = config.trunk_lr or 0.0
    options = {
        **options,
        "trunk_lr": trunk_lr,
        "batch_size": config.batch_size,
        "weight_decay": config.weight_decay,
        "augmented": batches.augmented,
        "bn": batches.bn,
    }
    copied = copy.deepcopy(net)
    student = GateStudent(copied, options, trunk_learns=trunk_lr > 0)
    student.eval()
    gates_of(student).train()
    student.staged.train(trunk_lr > 0 and batches.guide is None)
    every = max(1, config.steps // RECORDS)

    def recorded_step(_: nn.Module, draw: Generator, done: float) -> Tensor:
        t = round(done * config.steps)
        with batches.drawn(student.staged, config.batch_size, draw) as batch:
            result = step(student, batch, draw, done)
        if t % every == 0 or t == config.steps - 1:
            student.records.append(result.record(t))
        return result.loss

    config = replace(config, label=method, about=f"{batches.sampler.num_samples:,} rows")
    ratio = trunk_lr / config.lr
    run = fit(student, recorded_step, config, share=lambda part: ratio if part == "staged" else 1.0, modes="given")
    copied.to(next(net.parameters()).device)
    take_flags(copied, net)
    copied.seen = net.seen | batches.sampler.content
    history = GateHistory(
        method=method,
        steps=config.steps,
        records=tuple(student.records),
        seconds=run.seconds,
        resumed_at=run.resumed_at,
    )
    return copied, history
