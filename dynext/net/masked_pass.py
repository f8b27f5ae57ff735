"""A gated pass over a whole batch: every stage runs for every sample, and masks choose; what training and tables need.

Dynamic execution, where a skipped stage costs nothing, is `dynext.runtime.engine`.

Shapes: b samples, e exits (the last is the full net), g gated stages, k classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from dynext.errors import PolicyError
from dynext.graph.stage import LiveTensors
from dynext.modules.gates import Gates, Memory
from dynext.modules.skip_rule import SkipRule, runs
from dynext.net.dynamic_net import DynamicNet

Decide = Callable[[int, Tensor], Tensor]
"""``decide(g, logit_b)``: 1 for samples that run gated stage g, 0 for those that skip it ``[b]``; may carry a
gradient.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class GatedPass:
    """What a pass gave: what each early exit sees, final logits, gates' logits and decisions."""

    taps: list[Tensor]
    logits_bk: Tensor
    logit_bg: Tensor
    """Of running each gated stage; infinite where the gate was not asked."""
    run_bg: Tensor
    """1 or 0 (float), without a gradient."""


def gated(net: DynamicNet, x: Tensor, decide: Decide, asked_g: Sequence[bool] | None = None) -> GatedPass:
    """Run samples ``x [b ...]`` with decisions as masks: ``m F(x) + (1 - m) x`` for a stage F.

    Where ``decide`` gives values with a gradient, as `straight_through`, it flows into the gates.

    Args:
        asked_g: which gates are asked; the others' stages always run. All without it.

    Raises:
        PolicyError: the net has no gates.

    Source: SkipNet, Wang et al., ECCV 2018, arXiv:1711.09485, eq. 1.
    """
    gates = gates_of(net)
    asked_g = [True] * len(gates) if asked_g is None else asked_g
    gate_of = {s: g for g, s in enumerate(gates.at) if asked_g[g]}
    memory: Memory = gates.begin(x) if any(asked_g) else ()
    always = torch.full((len(x),), math.inf, dtype=x.dtype, device=x.device)
    logit_g, run_g = [always] * len(gates), [torch.ones_like(always)] * len(gates)
    live: LiveTensors = (x,)
    tap, taps = x, []
    exits = set(net.exit_stages[:-1])
    for s, stage in enumerate(net.staged.stages):
        g = gate_of.get(s)
        if g is None:
            live = stage(*live)
        else:
            logit_g[g], memory = gates.ask(g, tap, memory)
            run_b = decide(g, logit_g[g])
            run_g[g] = run_b.detach()
            live = tuple(_mixed(run_b, ran, skipped) for ran, skipped in zip(stage(*live), live, strict=True))
        tap = live[stage.tap]
        if s in exits:
            taps.append(tap)
    return GatedPass(
        taps=taps, logits_bk=live[0], logit_bg=torch.stack(logit_g, dim=1), run_bg=torch.stack(run_g, dim=1)
    )


def _mixed(run_b: Tensor, ran: Tensor, skipped: Tensor) -> Tensor:
    run = run_b.to(ran.dtype).view(-1, *[1] * (ran.ndim - 1))
    if not run_b.requires_grad:
        return ran.where(run > 0, skipped)  # what is infinite in a stage that a sample skips stays out of it
    return run * ran + (1 - run) * skipped


def straight_through(g: int, logit_b: Tensor) -> Tensor:
    """Hard forward, soft backward: 1 where the probability is a half or more, with the probability's gradient.

    Source: SkipNet, Wang et al., ECCV 2018, arXiv:1711.09485, section 3.3 (its code runs at more than a half).
    """
    probability_b = logit_b.sigmoid()
    return runs(logit_b, 0.5).to(logit_b.dtype) + (probability_b - probability_b.detach())


def greedy(keep_g: SkipRule) -> Decide:
    """What `run` does: a sample runs a stage where its gate's probability reaches ``keep_g[g]``."""
    return lambda g, logit_b: runs(logit_b, keep_g[g]).to(logit_b.dtype)


def sampled(draw: Generator, mix: float = 1.0) -> Decide:
    """Drawn: run with probability ``mix p + (1 - mix)(1 - p)``; no gradient (see
    `dynext.losses.gates.log_probability`).
    """

    def decide(g: int, logit_b: Tensor) -> Tensor:
        probability_b = logit_b.detach().sigmoid()
        mixed_b = mix * probability_b + (1 - mix) * (1 - probability_b)
        return (torch.rand(len(logit_b), generator=draw).to(mixed_b) < mixed_b).to(logit_b.dtype)

    return decide


def replayed(run_bg: Tensor) -> Decide:
    """Decisions of an earlier pass, ``[b g]``."""
    return lambda g, logit_b: run_bg[:, g].to(logit_b)


def trunk_macs(net: DynamicNet, run_bg: Tensor, keep_g: SkipRule) -> Tensor:
    """MACs ``[b e]`` (int64) of the stages that each sample runs up to each exit, asked gates included, heads not."""
    gates = gates_of(net)
    start = gates.start_macs if any(keep is not None for keep in keep_g) else 0
    macs_be = torch.tensor(net.trunk_macs_e, device=run_bg.device).repeat(len(run_bg), 1) + start
    for g, s in enumerate(gates.at):
        if keep_g[g] is None:
            continue
        skipped_b = (run_bg[:, g] == 0).long() * net.staged.stages[s].macs
        behind_e = torch.tensor([end >= s for end in net.exit_stages], device=run_bg.device)
        macs_be += behind_e.long() * (gates.macs_g[g] - skipped_b)[:, None]
    return macs_be


def gates_of(net: DynamicNet) -> Gates:
    """The net's gates.

    Raises:
        PolicyError: it has none.
    """
    if net.gates is None:
        raise PolicyError("the net has no gates; attach some (dx.attach_gates)")
    return net.gates
