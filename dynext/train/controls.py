"""What a learned policy must beat at the same cost: the best fixed set of stages, and chance.

Shapes: g gated stages, k classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynext.brief import short_repr
from dynext.data.given import takes_data
from dynext.data.indexing import check_samples
from dynext.errors import PolicyError
from dynext.modules.gates import GateSpec, random_gates, static_gates
from dynext.modules.modes import evaluating, statistics
from dynext.net.attach import attach_gates
from dynext.net.collect import collect
from dynext.net.dynamic_net import DynamicNet
from dynext.net.masked_pass import gated, gates_of, replayed
from dynext.policy.policy import Policy
from dynext.reporting.report import Report, report
from dynext.types import BatchNormMode, Data, InputSpec, Source
from dynext.usual_modes import in_usual_modes


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Gated stages from the one that is missed least to the most, each dropped on top of those before it."""

    __repr__ = short_repr

    order: tuple[int, ...]
    """Numbers of gates."""
    kl: tuple[float, ...]
    """KL(full net || net without them), nats a sample, when so many are dropped."""
    agreement: tuple[float, ...]
    """Share of the samples that this net answers like the full one."""
    macs: tuple[int, ...]
    """What dropping so many saves, per sample."""

    def run(self, dropped: int) -> tuple[bool, ...]:
        """Per gate, whether its stage runs when the first ``dropped`` of the order do not."""
        return tuple(g not in self.order[:dropped] for g in range(len(self.order)))


@in_usual_modes
@takes_data(unlabelled=("source",))
@torch.inference_mode()
def rank_stages(
    net: DynamicNet, source: Data, *, bn: BatchNormMode | None = None, spec: InputSpec | None = None
) -> Ranking:
    """Drop one gated stage after the other, each time the one without which the net's answers change least.

    No label is read. Takes g(g + 1)/2 passes over ``source``; a few hundred samples do.

    Args:
        bn: which statistics the stages' BatchNorms use; the source's own choice by default ("@bn" for synthesized
            samples).

    Raises:
        PolicyError: the net has no gates. SourceError: no samples.

    Source: greedy backward elimination by what the output loses, as the static baselines of BlockDrop, Wu et al., CVPR
    2018, section 4.3 (there first, last, random and evenly spaced blocks); KL in place of labels is ours.
    """
    at = gates_of(net).at
    check_samples(source, net.staged.input_shape)
    net = _regated(net, static_gates([True] * len(at)))  # costs nothing to ask
    left, run_g = list(range(len(at))), torch.ones(len(at))
    order, kls, agreements, macs, saved = [], [], [], [], 0
    mode = bn or source.bn
    with evaluating(net), statistics(net.staged, mode):
        while left:
            tried = {g: _changed(net, source, run_g, g) for g in left}
            best = min(left, key=lambda g: tried[g][0])
            left.remove(best)
            run_g[best] = 0
            saved += net.staged.stages[at[best]].macs
            order.append(best)
            kls.append(tried[best][0])
            agreements.append(tried[best][1])
            macs.append(saved)
    return Ranking(order=tuple(order), kl=tuple(kls), agreement=tuple(agreements), macs=tuple(macs))


def _changed(net: DynamicNet, source: Source, run_g: Tensor, drop: int) -> tuple[float, float]:
    """Mean KL from the full net's answers, and agreement with them, when gate ``drop``'s stage is left out as well."""
    run_g = run_g.clone()
    run_g[drop] = 0
    like = next(net.parameters())
    divergence = same = 0.0
    for batch in source:
        x = batch.x.to(like)
        full_bk = net(x).double()
        less_bk = gated(net, x, replayed(run_g.to(like.device).expand(len(x), -1))).logits_bk.double()
        log_full, log_less = full_bk.log_softmax(-1), less_bk.log_softmax(-1)
        divergence += float(F.kl_div(log_less, log_full, reduction="sum", log_target=True))
        same += float((full_bk.argmax(-1) == less_bk.argmax(-1)).sum())
    return divergence / len(source), same / len(source)


def static_control(net: DynamicNet, ranking: Ranking, saved: float) -> DynamicNet:
    """A copy of ``net`` that drops the same stages for every sample.

    Of the ranking's sets it drops the one whose saving is nearest to ``saved`` MACs a sample.

    Raises:
        PolicyError: the net has no gates.
    """
    counts = range(len(ranking.order) + 1)
    nearest = min(counts, key=lambda count: abs((0, *ranking.macs)[count] - saved))
    return _regated(net, static_gates(ranking.run(nearest)))


def random_control(net: DynamicNet, saved: float, *, seed: int = 0) -> DynamicNet:
    """A copy of ``net`` that skips each gated stage by chance, all at one rate, by which ``saved`` MACs a sample are to
    be expected.

    Raises:
        PolicyError: the net has no gates, or they cannot save as much.
    """
    total = sum(net.staged.stages[s].macs for s in gates_of(net).at)
    if not 0 <= saved <= total:
        raise PolicyError(f"{saved:,.0f} MACs to save, the gated stages have {total:,}; give something in between")
    return _regated(net, random_gates(1 - saved / max(total, 1), seed=seed))


def _regated(net: DynamicNet, gates: GateSpec) -> DynamicNet:
    return attach_gates(net, gates, at=gates_of(net).at)


@in_usual_modes
@takes_data("test", unlabelled=("ranked_on",))
def at_equal_cost(
    net: DynamicNet,
    ranked_on: Data,
    test: Data,
    *,
    static: nn.Module | None = None,
    tune: Callable[[DynamicNet], DynamicNet] | None = None,
    keep: float = 0.5,
    seed: int = 0,
    spec: InputSpec | None = None,
) -> dict[str, Report]:
    """``"learned"`` gates on ``test``, and two controls that save as many MACs: the best ``"fixed set"``, ``"chance"``.

    The controls have the trunk of ``net``, which may have got used to another way of skipping.

    Args:
        ranked_on: samples by which the fixed set is found (`rank_stages`); not those of ``test``.
        static: the full net to compare with; ``net`` whole by default.
        tune: trains a control's trunk further, to be fair to it; without it the trunk is left as it is.
        keep: threshold of all learned gates: a sample runs a stage where its gate's probability reaches it.

    Raises:
        PolicyError: the net has no gates. SourceError: no samples.
    """
    learned = _reported(net, test, static, keep)
    saved = max(learned.static_macs - learned.macs, 0.0)
    controls = {
        "fixed set": static_control(net, rank_stages(net, ranked_on), saved),
        "chance": random_control(net, saved, seed=seed),
    }
    tuned = {name: control if tune is None else tune(control) for name, control in controls.items()}
    return {"learned": learned, **{name: _reported(control, test, static, 0.5) for name, control in tuned.items()}}


def _reported(net: DynamicNet, test: Source, static: nn.Module | None, keep: float) -> Report:
    policy = Policy.skipping(net.num_exits, net.num_gates, keep=keep)
    return report(collect(net, test, keep=policy.keep_g, static=static), policy)
