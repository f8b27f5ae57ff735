"""Teach a net to skip without its training data: the static net says what is right about synthesized samples.

A trunk that learns with stages left out is no longer the static net. What it loses is measured against that one, and
where it loses too much the static net stays (`dynext.zeroshot.convert`).

Shapes: g gated stages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from typing_extensions import Unpack

from dynext.errors import SplitError
from dynext.fitting import FitConfig, FitOptions, configured
from dynext.graph import StagedNet
from dynext.graph.split import split
from dynext.modules.exits import default_heads
from dynext.modules.gates import GateSpec, policy_gates, recurrent_gates, static_gates
from dynext.net.attach import attach, attach_gates
from dynext.net.dynamic_net import DynamicNet
from dynext.net.given_heads import HeadsGiven
from dynext.net.masked_pass import gated, replayed
from dynext.train.batches import TaughtBatch, TaughtBatches
from dynext.train.controls import rank_stages
from dynext.train.frozen_teacher import BesideMode
from dynext.train.gate_loop import GateHistory, GateStep, train_gates
from dynext.train.methods.blockdrop import blockdrop_curriculum, blockdrop_finetune
from dynext.train.methods.skipnet import SkipNetReward, skipnet_pretrain, skipnet_reinforce
from dynext.types import Batch, BatchNormMode, Source
from dynext.zeroshot.settings import SKIP_STEPS, SkipKind

USUAL = FitConfig(steps=SKIP_STEPS, lr=2e-3, trunk_lr=1e-4, batch_size=64)

KEEPS = (0.05, 0.15, 0.3, 0.5)
"""Thresholds that learned gates are tried at, the more cautious first; they are trained for the last."""

PRICE = 0.3
"""Of running every gated stage, in nats, while gates are pre-trained."""

REWARD = SkipNetReward(alpha=0.1, weight=1.0, baseline=True)
PENALTY = 5.0
RANKED = 512
"""Samples that stages are ranked on."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Skipper:
    """A net that has learned to skip, the skip rules worth trying on it, and how it came about."""

    net: DynamicNet
    rules: tuple[tuple[float, ...], ...]
    """As `Policy.keep_g`, the more cautious first."""
    record: dict[str, Any]
    """How it was trained; JSON, for the provenance of a conversion."""


def attach_around_blocks(
    teacher: nn.Module, example: Tensor, after: Any, heads: HeadsGiven | None, *, seed: int
) -> DynamicNet:
    """Split around residual blocks, with exits where they would stand had the net not been split so.

    Raises:
        SplitError: as `dynext.split`; or no block that a sample may skip.
    """
    staged = split(teacher, example, after, granularity="block")
    if not staged.skippable:
        raise SplitError(
            "the net has no residual block that a sample may skip; train it otherwise (dx.Frozen or dx.Joint)"
        )
    heads = heads or default_heads(staged.num_classes)
    return attach(staged, heads, at=_nearest_stages(split(teacher, example, after), staged), seed=seed)


def _nearest_stages(plain: StagedNet, staged: StagedNet) -> list[int]:
    """For each cut of ``plain`` the stage of ``staged`` that ends nearest to it, by MACs."""
    ends = torch.tensor([stage.macs for stage in staged.stages][:-1]).cumsum(0)
    cuts = torch.tensor([stage.macs for stage in plain.stages][:-1]).cumsum(0)
    return sorted({int((ends - cut).abs().argmin()) for cut in cuts})


def teach_to_skip(
    net: DynamicNet,
    teacher: nn.Module,
    source: Source,
    kind: SkipKind,
    config: FitConfig | None = None,
    **options: Unpack[FitOptions],
) -> Skipper:
    """A copy of ``net`` with gates, taught to answer like ``teacher`` on ``source`` with stages left out.

    ``"skipnet"``: shared recurrent gates, supervised with a price on what runs, then hybrid reinforcement learning.
    ``"blockdrop"``: a policy network, the curriculum on the frozen trunk, then both together. ``"static"``: stages
    ranked by KL, then the trunk distilled with more or fewer of the first half of them left out, so that one trunk
    serves all of these sets. Truth and reward are the teacher's probabilities. The trunk's buffers stay; synthesized
    samples are normalized as `dynext.train.frozen_teacher` says for ``bn="batch"``.

    Args:
        config: for all parts of the training together; each part's checkpoint is a file of its own beside the given.

    Raises:
        SplitError: no stage that a sample may skip. FitError, SourceError: as the training.
    """
    config = configured(USUAL, config, options)
    guided = _Guided(teacher=teacher, bn="batch" if source.bn == "batch" else "frozen")
    if kind == "static":
        return _fixed_sets(net, source, config, guided)
    gates: GateSpec = recurrent_gates() if kind == "skipnet" else policy_gates(width=8, side=16)
    net = attach_gates(net, gates, seed=config.seed)
    first, second = _parts(config)
    if kind == "skipnet":
        net, before = skipnet_pretrain(net, source, first, price=PRICE, **guided)
        net, after = skipnet_reinforce(net, source, second, reward=REWARD, **guided)
    else:
        net, before = blockdrop_curriculum(net, source, replace(first, trunk_lr=0.0), penalty=PENALTY, **guided)
        net, after = blockdrop_finetune(net, source, second, penalty=PENALTY, **guided)
    rules = tuple((keep,) * net.num_gates for keep in KEEPS)
    return Skipper(net=net, rules=rules, record=_record(kind, [before, after]))


class _Guided(TypedDict):
    """The teacher that all parts of the training learn from, and which statistics both nets normalize by."""

    teacher: nn.Module
    bn: BesideMode


def _parts(config: FitConfig) -> tuple[FitConfig, FitConfig]:
    """Two thirds of the steps, then the rest at a gentler rate."""
    first = 2 * config.steps // 3
    path = config.checkpoint
    paths = [None if path is None else path.with_suffix(f".{part}.ckpt") for part in ("first", "second")]
    return (
        replace(config, steps=first, checkpoint=paths[0]),
        replace(config, steps=config.steps - first, lr=config.lr / 4, checkpoint=paths[1]),
    )


def _fixed_sets(net: DynamicNet, source: Source, config: FitConfig, guided: _Guided) -> Skipper:
    """Nested sets of dropped stages on one trunk; the policy's threshold picks one."""
    net = attach_gates(net, static_gates([1.0] * len(net.staged.skippable)))
    ranking = rank_stages(net, _FirstSamples(source=source, most=RANKED))
    num_gates, most = net.num_gates, max(1, net.num_gates // 2)
    rank_g = [ranking.order.index(g) for g in range(num_gates)]
    net = attach_gates(net, static_gates([(rank + 1) / (num_gates + 1) for rank in rank_g]))

    def step(student: DynamicNet, batch: TaughtBatch, draw: Generator, done: float) -> GateStep:
        dropped = int(torch.randint(1, most + 1, (), generator=draw))
        run_g = torch.tensor(ranking.run(dropped), dtype=batch.x.dtype, device=batch.x.device)
        result = gated(student, batch.x, replayed(run_g.expand(len(batch.x), -1)))
        cross_entropy = F.cross_entropy(result.logits_bk, batch.target, reduction="none").mean()
        return GateStep(loss=cross_entropy, cross_entropy=cross_entropy, run_bg=result.run_bg)

    batches = TaughtBatches.of(source, net, **guided)
    order = list(ranking.order)
    net, history = train_gates(
        net, batches, step, config, method="fixed sets of stages, distilled", options={"order": order, "most": most}
    )
    rules = tuple(((dropped + 0.5) / (num_gates + 1),) * num_gates for dropped in range(1, most + 1))
    before = {"order": order, "kl_before": list(ranking.kl), "agreement_before": list(ranking.agreement)}
    return Skipper(net=net, rules=rules, record={**_record("static", [history]), **before})


def _record(kind: SkipKind, histories: list[GateHistory]) -> dict[str, Any]:
    return {
        "kind": kind,
        "trainings": [
            {"method": history.method, "steps": history.steps, "last": [asdict(r) for r in history.records[-1:]]}
            for history in histories
        ],
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class _FirstSamples:
    """The first samples of a source, ``most`` of them at the most."""

    source: Source
    most: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.shape)

    @property
    def bn(self) -> BatchNormMode:
        return self.source.bn

    def __len__(self) -> int:
        return min(self.most, len(self.source))

    def __iter__(self) -> Iterator[Batch]:
        left = len(self)
        for batch in self.source:
            if not left:
                return
            yield Batch(x=batch.x[:left], y=None if batch.y is None else batch.y[:left])
            left -= min(left, len(batch.x))
