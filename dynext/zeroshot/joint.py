"""Distil the whole dynamic net, trunk included, so that early layers become useful to early exits.

The static net teaches every exit, the last one too, which is what keeps it in place; how far it goes is bounded on
samples that are not trained on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn
from typing_extensions import Unpack

from dynext.brief import short_repr
from dynext.data.content import Content
from dynext.data.given import LearnOptions, takes_data
from dynext.data.indexing import by_index, check_samples
from dynext.errors import FitError
from dynext.fitting import FitConfig, check_same_run, configured, fit
from dynext.losses.exits import distillation
from dynext.modules.modes import take_flags
from dynext.net.dynamic_net import DynamicNet
from dynext.net.equilibrium import logits_in_equilibrium
from dynext.net.features import same_function
from dynext.train.drift import Drift, DriftCheck, DriftGuard, drift_of, split_held_out
from dynext.train.frozen_teacher import BesideMode, Guide
from dynext.types import Batch, Data, Source

CHECKS = 20
"""How often, spread over the run, the drift is measured."""


@dataclass(frozen=True, kw_only=True)
class JointReport:
    """What joint distillation did to every exit, and to the last one in particular."""

    __repr__ = short_repr

    steps: int
    rows: int
    """Trained on; the drift's samples are others."""
    bn: BesideMode
    max_drift: float
    before: Drift
    after: Drift
    checks: tuple[DriftCheck, ...]
    seconds: float
    """Of this process; a resumed run counts from where it went on."""

    def __str__(self) -> str:
        undone = sum(check.restored for check in self.checks)
        lines = [f"joint distillation, {self.steps:,} steps on {self.rows:,} samples, {self.bn} statistics"]
        for when, drift in (("before", self.before), ("after", self.after)):
            lines.append(f"  {when:6}  exits agree on " + "  ".join(f"{share:.1%}" for share in drift.agreement_e))
        lines.append(f"  {self.after} (held out; at most {self.max_drift:.2%} may differ)")
        lines.append(f"  {undone} of {len(self.checks)} checks found it too far and undid what led there")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


TRUNK_LR = 1e-4
USUAL = FitConfig(steps=1000, lr=1e-3, trunk_lr=TRUNK_LR, batch_size=64)


@dataclass(frozen=True, kw_only=True)
class JointLoss:
    """What is descended: the sum over early exits of tau^2 KL(teacher || exit), and the terms below.

    Raises:
        FitError: a temperature that is not positive, or a negative weight.
    """

    temperature: float = 4.0
    """tau."""
    anchor: float = 1.0
    """Weight of the same term of the last exit, which keeps it in place."""
    match: float = 0.0
    """Weight of the features' relative squared distance from the teacher's, mean over the cuts."""
    equilibrium: bool = True
    """Balance the exits' gradients in the trunk (`dynext.net.equilibrium.logits_in_equilibrium`)."""

    def __post_init__(self) -> None:
        if not self.temperature > 0 or self.anchor < 0 or self.match < 0:
            raise FitError(f"{self}; give a positive temperature and weights of 0 or more")


@takes_data(unlabelled=("source",))
def distill_jointly(
    net: DynamicNet,
    teacher: nn.Module | None,
    source: Data,
    config: FitConfig | None = None,
    *,
    loss: JointLoss = JointLoss(),
    bn: BesideMode = "frozen",
    max_drift: float = 0.02,
    **options: Unpack[LearnOptions],
) -> tuple[DynamicNet, JointReport]:
    """A copy of ``net`` trained as a whole to answer like ``teacher`` at every exit, and how far its last exit drifted.

    Adam, cosine schedule. It pays to begin with exits that were distilled already (`dynext.distill`). Buffers of the
    trunk stay bit for bit; its dropout is off. The last exit is no longer the static net: agreement with it, and any
    policy chosen by agreement, is then about the trained net, and the report's drift comes on top.

    Args:
        teacher: the static net; ``None`` takes the net's own last exit as it is now.
        bn: which statistics teacher and trunk normalize by while training; `dynext.train.frozen_teacher` says what
            the two mean. Heads learn their own statistics.
        max_drift: share of the held-out samples that the last exit may answer unlike the teacher. Looked at 20 times: a
            state beyond it is undone, and the trunk goes on at half its rate.
        config, options: 1,000 steps of 64 samples, rates of .001 for the heads and ``trunk_lr`` .0001 for the trunk
            without them; a ``trunk_lr`` of 0 leaves it alone. With ``checkpoint`` an interrupted run is kept and
            resumed.

    Raises:
        FitError: no early exit, figures out of range, a net that is too far from the teacher to begin with.
        SourceError: too few samples, or samples of another shape than the model expects.

    Source: Phuong & Lampert, ICCV 2019 (the last exit teaches; ours is the frozen static net, as one that moves would
    drift with its pupils); Li et al., ICCV 2019, arXiv:1908.06294 (gradient equilibrium); Kubaty et al., ICML 2025
    (trunk first, then jointly).
    """
    config = configured(USUAL, config, options)
    trunk_lr = TRUNK_LR if config.trunk_lr is None else config.trunk_lr
    _check(net, source, max_drift)
    rows = _Rows.of(source, config.seed)
    guide = Guide.of(_reference(net, teacher, loss.match), bn)
    student = copy.deepcopy(net)
    student.requires_grad_(True)
    identity = {"temperature": loss.temperature, "trunk_lr": trunk_lr, "batch_size": config.batch_size, "bn": bn}
    identity |= {"max_drift": max_drift, "anchor": loss.anchor, "match": loss.match, "equilibrium": loss.equilibrium}
    trained = _Trained(student, DriftGuard(student, guide, rows.held_out, max_drift), identity)
    trained.exits.train()  # type: ignore[attr-defined]  # a ModuleList
    guard, every = trained.guard, max(1, config.steps // CHECKS)

    def step(_: nn.Module, draw: Generator, done: float) -> Tensor:
        t = round(done * config.steps)
        if t and t % every == 0:
            guard.check(t)
        like = next(trained.parameters())
        x = rows.draw(config.batch_size, draw).to(like)
        with guide.beside(trained.staged, x) as wanted:
            logits_e, taps = logits_in_equilibrium(trained, x, balance=loss.equilibrium)
        term_e = [distillation(logits, wanted.logits, loss.temperature) for logits in logits_e]
        total = torch.stack(term_e[:-1]).sum() + loss.anchor * term_e[-1]
        return total + loss.match * _distance(taps, wanted.taps) if loss.match else total

    slow = trunk_lr / config.lr
    result = fit(
        trained,
        step,
        replace(config, label="joint distillation"),
        share=lambda part: slow * guard.rate if part == "staged" else 1.0,
        modes="given",
    )
    if config.steps and guard.checks[-1].step != config.steps:
        guard.check(config.steps)
    student.to(next(net.parameters()).device)
    take_flags(student, net)
    student.seen = net.seen | Content.of(source)
    report = JointReport(
        steps=config.steps,
        rows=len(rows.train_n),
        bn=bn,
        max_drift=max_drift,
        before=guard.checks[0].drift,
        after=drift_of(student, guide, guard.batches),
        checks=tuple(guard.checks),
        seconds=result.seconds,
    )
    return student, report


class _Trained(DynamicNet):
    """The student's very parts, with what a resumed run must know beside its weights."""

    def __init__(self, net: DynamicNet, guard: DriftGuard, options: dict[str, Any]) -> None:
        super().__init__(net.staged, net.exits, net.gates)
        self.guard, self.options = guard, options

    # "leash" is what version 0.1 called the guard: checkpoints keep the key
    def get_extra_state(self) -> dict[str, Any]:
        return {"options": self.options, "leash": self.guard.state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        check_same_run(state["options"], self.options)
        self.guard.resume(state["leash"])


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """A source by index: most samples to train on, some held out."""

    take: Callable[[Tensor], Batch]
    train_n: Tensor
    held_out: Tensor

    @classmethod
    def of(cls, source: Source, seed: int) -> _Rows:
        train_n, held_out_n = split_held_out(source, seed)
        take = by_index(source)
        return cls(take=take, train_n=train_n, held_out=take(held_out_n).x)

    def draw(self, count: int, draw: Generator) -> Tensor:
        return self.take(self.train_n[torch.randint(len(self.train_n), (max(count, 2),), generator=draw)]).x


def _distance(taps: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """Squared distance of the features at each cut, as a share of their squared size; mean over the cuts."""
    pairs = zip(taps, wanted, strict=True)
    return torch.stack(
        [(ours - theirs).square().sum() / theirs.square().sum().clamp_min(1e-12) for ours, theirs in pairs]
    ).mean()


def _reference(net: DynamicNet, teacher: nn.Module | None, match: float) -> nn.Module:
    """Whom to follow: the net's own stages where they still are the teacher, since these show their cuts."""
    with torch.no_grad():
        if teacher is None or same_function(net, teacher):
            return net.staged
    if match:
        raise FitError(
            f"match={match} compares features at the cuts with the teacher's, but the net is no longer it; give 0"
        )
    return teacher


def _check(net: DynamicNet, source: Source, max_drift: float) -> None:
    if not len(net.exits):
        raise FitError("the net has no early exit to train; attach some (dx.attach)")
    if not 0 <= max_drift <= 1:
        raise FitError(f"max_drift={max_drift}; give a share of the samples, in [0, 1]")
    check_samples(source, net.staged.input_shape, least=4)  # some are held out
