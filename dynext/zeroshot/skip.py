"""Teach a net to skip without its training data: the static net says what is right of samples that were synthesized.

The trunk that learns to be skipped is no longer the static net. What it loses is measured against that one, and where
it loses too much the static net stays (`dynext.zeroshot.convert`).

Shapes: g gated stages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from dynext.errors import FitError, SplitError
from dynext.graph import StagedNet
from dynext.graph.split import split
from dynext.modules.exits import Heads, default_heads
from dynext.modules.gates import GateSpec, policy_gates, recurrent_gates, static_gates
from dynext.net.attach import attach, attach_gates
from dynext.net.dynamic_net import DynamicNet
from dynext.net.masked_pass import gated, replayed
from dynext.train.batches import TaughtBatch
from dynext.train.controls import rank_stages
from dynext.train.gate_loop import GateFit, GateTraining, Stepped, train_gates
from dynext.train.methods.blockdrop import blockdrop_curriculum, blockdrop_finetune
from dynext.train.methods.skipnet import skipnet_pretrain, skipnet_reinforce
from dynext.types import Batch, BatchNormMode, Source

SkipKind = Literal["skipnet", "blockdrop", "static"]

SKIP_STEPS = 600
"""Steps of a conversion that is in no hurry, all parts of the training together."""

KEEPS = (0.05, 0.15, 0.3, 0.5)
"""Thresholds that learned gates are tried at, the more cautious first; they are trained for the last."""

PRICE = 0.3
"""Of running every gated stage, in nats, while gates are pre-trained."""

ALPHA, PENALTY = 0.1, 5.0
TRUNK_LR = 1e-4
RANKED_ROWS = 512


@dataclass(frozen=True, kw_only=True, eq=False)
class Skipper:
    """A net that has learned to skip, the skip rules worth trying on it, and how it came about."""

    net: DynamicNet
    rules: tuple[tuple[float, ...], ...]
    """As `Policy.keep_g`, the more cautious first."""
    told: dict[str, Any]
    """JSON."""


def skipping_kind(skip: bool | str) -> SkipKind | None:
    """What ``convert(skip=...)`` asks for; ``True`` is SkipNet's recurrent gates.

    Raises:
        FitError: a kind that does not exist.
    """
    if skip is False:
        return None
    kind = "skipnet" if skip is True else skip
    if kind not in get_args(SkipKind):
        raise FitError(f"skip={skip!r}; give True, or one of {', '.join(get_args(SkipKind))}")
    return kind  # type: ignore[return-value]


def attach_around_blocks(
    teacher: nn.Module, example: Tensor, after: Any, heads: Heads | None, *, seed: int
) -> DynamicNet:
    """Split around residual blocks, exits where they would stand without that.

    Raises:
        SplitError: as `dynext.split`; or no block that a sample may skip.
    """
    staged = split(teacher, example, after, granularity="block")
    if not staged.skippable:
        raise SplitError("the net has no residual block that a sample may skip; leave skip out")
    heads = heads or default_heads(staged.num_classes)
    return attach(staged, heads, at=_same_places(split(teacher, example, after), staged), seed=seed)


def _same_places(plain: StagedNet, staged: StagedNet) -> list[int]:
    """For each cut of ``plain`` the stage of ``staged`` that ends nearest to it, by MACs."""
    ends = torch.tensor([stage.macs for stage in staged.stages][:-1]).cumsum(0)
    cuts = torch.tensor([stage.macs for stage in plain.stages][:-1]).cumsum(0)
    return sorted({int((ends - cut).abs().argmin()) for cut in cuts})


def teach_to_skip(
    net: DynamicNet,
    teacher: nn.Module,
    source: Source,
    kind: SkipKind,
    *,
    steps: int = SKIP_STEPS,
    seed: int = 0,
    batch_size: int = 64,
    folder: Path | None = None,
    accelerator: str = "cpu",
    progress: bool = True,
) -> Skipper:
    """A copy of ``net`` with gates, taught on the samples of ``source`` to answer like ``teacher`` with stages left
    out.

    ``"skipnet"``: shared recurrent gates, supervised with a price on what runs, then hybrid reinforcement learning.
    ``"blockdrop"``: a policy network, the curriculum on the frozen trunk, then both together. ``"static"``: stages
    ranked by KL, then the trunk distilled with more or fewer of the first half of them left out, so that one trunk
    serves all of these sets. Truth and reward are the teacher's probabilities. The trunk's buffers stay; synthesized
    samples are normalized as `dynext.train.frozen_teacher` says for ``bn="batch"``.

    Args:
        steps: of all parts together.
        folder: keeps the state of an interrupted run.

    Raises:
        SplitError: no stage that a sample may skip. FitError, SourceError: as the training.
    """
    fitting = GateFit(
        steps=steps,
        lr=2e-3,
        trunk_lr=TRUNK_LR,
        batch_size=batch_size,
        seed=seed,
        bn="batch" if source.bn == "batch" else "frozen",
        checkpoint=None if folder is None else folder / f"{kind}.ckpt",
        accelerator=accelerator,
        progress=progress,
    )
    if kind == "static":
        return _sets(net, teacher, source, fitting)
    gates: GateSpec = recurrent_gates() if kind == "skipnet" else policy_gates(width=8, side=16)
    net = attach_gates(net, gates, seed=seed)
    first, second = _parts(fitting)
    if kind == "skipnet":
        net, one = skipnet_pretrain(net, source, first, teacher=teacher, price=PRICE)
        net, two = skipnet_reinforce(net, source, second, teacher=teacher, alpha=ALPHA, weight=1.0, baseline=True)
    else:
        net, one = blockdrop_curriculum(net, source, replace(first, trunk_lr=0.0), teacher=teacher, penalty=PENALTY)
        net, two = blockdrop_finetune(net, source, second, teacher=teacher, penalty=PENALTY)
    rules = tuple((keep,) * net.num_gates for keep in KEEPS)
    return Skipper(net=net, rules=rules, told=_told(kind, [one, two]))


def _parts(fitting: GateFit) -> tuple[GateFit, GateFit]:
    """Two thirds of the steps, then the rest at a gentler rate."""
    first = 2 * fitting.steps // 3
    kept = fitting.checkpoint
    names = [None if kept is None else kept.with_suffix(f".{part}.ckpt") for part in ("first", "second")]
    return (
        replace(fitting, steps=first, checkpoint=names[0]),
        replace(fitting, steps=fitting.steps - first, lr=fitting.lr / 4, checkpoint=names[1]),
    )


def _sets(net: DynamicNet, teacher: nn.Module, source: Source, fitting: GateFit) -> Skipper:
    """Nested sets of dropped stages on one trunk; the policy's threshold picks one."""
    net = attach_gates(net, static_gates([1.0] * len(net.staged.skippable)))
    ranking = rank_stages(net, _Few(source=source, rows=RANKED_ROWS))
    num_gates, most = net.num_gates, max(1, net.num_gates // 2)
    rank_g = [ranking.order.index(g) for g in range(num_gates)]
    net = attach_gates(net, static_gates([(rank + 1) / (num_gates + 1) for rank in rank_g]))

    def step(student: DynamicNet, lesson: TaughtBatch, draw: Generator, done: float) -> Stepped:
        dropped = int(torch.randint(1, most + 1, (), generator=draw))
        run_g = torch.tensor(ranking.run(dropped), dtype=lesson.x.dtype, device=lesson.x.device)
        found = gated(student, lesson.x, replayed(run_g.expand(len(lesson.x), -1)))
        loss_b = F.cross_entropy(found.logits_bk, lesson.target, reduction="none")
        nothing = torch.zeros_like(loss_b)
        return Stepped(
            loss=loss_b.mean(), cross_entropy=loss_b.mean(), reward_b=nothing, baseline_b=nothing, run_bg=found.run_bg
        )

    options = {"order": list(ranking.order), "most": most}
    net, training = train_gates(
        net, source, step, fitting, method="fixed sets of stages, distilled", teacher=teacher, options=options
    )
    rules = tuple(((dropped + 0.5) / (num_gates + 1),) * num_gates for dropped in range(1, most + 1))
    told = {"order": list(ranking.order), "kl_before": list(ranking.kl), "agreement_before": list(ranking.agreement)}
    return Skipper(net=net, rules=rules, told={**_told("static", [training]), **told})


def _told(kind: SkipKind, trainings: list[GateTraining]) -> dict[str, Any]:
    return {
        "kind": kind,
        "trainings": [
            {"method": one.method, "steps": one.steps, "last": one.to_dict()["moments"][-1:]} for one in trainings
        ],
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class _Few:
    """The first samples of a source."""

    source: Source
    rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.shape)

    @property
    def bn(self) -> BatchNormMode:
        return self.source.bn

    def __len__(self) -> int:
        return min(self.rows, len(self.source))

    def __iter__(self) -> Iterator[Batch]:
        left = len(self)
        for batch in self.source:
            if not left:
                return
            yield Batch(x=batch.x[:left], y=None if batch.y is None else batch.y[:left])
            left -= min(left, len(batch.x))
