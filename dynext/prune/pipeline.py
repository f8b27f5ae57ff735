"""A smaller dynamic net in one call: plan, apply, fine-tune, 8 bits, and what all that did to the answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from dynext.errors import FitError, PlanError
from dynext.fitting import FitConfig
from dynext.graph.macs import param_bytes
from dynext.modules.modes import evaluating, statistics
from dynext.net.collect import collect
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.policy import Policy
from dynext.prune.apply import apply_plan
from dynext.prune.finetuning import finetune
from dynext.prune.plan import PruningPlan
from dynext.prune.quantization import quantize
from dynext.prune.ranking import By, rank
from dynext.types import Source

Bits = Literal["int8"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pruned:
    """A smaller net, the plan that led there, and how far it has gone from the one it was."""

    net: DynamicNet
    plan: PruningPlan
    agreement: float
    """Share of the samples on which its full net answers like the full net before."""
    rows: int
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        return (
            f"{self.plan}\n"
            f"bytes of parameters {self.bytes_before:,} -> {self.bytes_after:,}\n"
            f"its full net answers like the one before on {self.agreement:.2%} of {self.rows:,} samples"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON, for provenance."""
        return {
            "plan": self.plan.to_dict(),
            "agreement": self.agreement,
            "rows": self.rows,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
        }


def make_smaller(
    net: DynamicNet,
    source: Source,
    *,
    budget: float,
    judge: Source | None = None,
    by: By = "magnitude",
    blocks: int = 0,
    policy: Policy | None = None,
    steps: int = 1000,
    lr: float = 1e-3,
    bits: Bits | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> Pruned:
    """`dynext.prune.rank`, `dynext.prune.apply_plan`, `dynext.prune.finetune` and `dynext.prune.quantize`, one after
    the other.

    Args:
        source: samples to rank by, to fine-tune on and to calibrate on; labelled, unlabelled or synthesized.
        by: as in `dynext.prune.rank`; not ``"attention"``, which needs masks.
        judge: samples on which agreement with the net before is counted; those of ``source`` by default.
        policy: exits that it never uses go.
        bits: ``"int8"``: the smaller net in 8 bits.
        checkpoint: file in which an interrupted fine-tuning is kept and resumed from.

    Raises:
        PlanError, FitError, SourceError: as these do.
    """
    if bits not in (None, "int8"):
        raise FitError(f"bits={bits!r}; give 'int8', or None for floats")
    if by == "attention":
        raise PlanError(
            "attention ranks by masks that were distilled before; call dx.prune.rank(..., auxiliary=) in its place"
        )
    plan = rank(net, budget=budget, by=by, source=source, blocks=blocks, policy=policy)
    small = apply_plan(net, plan)
    if steps and plan:
        config = FitConfig(steps=steps, lr=lr, seed=seed, checkpoint=checkpoint, progress=progress)
        small = finetune(small, net.staged, source, config)
    if bits is not None:
        small = quantize(small, source, seed=seed)
    judge = source if judge is None else judge
    return Pruned(
        net=small,
        plan=plan,
        agreement=_agreement(small, net.staged, judge),
        rows=len(judge),
        bytes_before=param_bytes(net),
        bytes_after=param_bytes(small),
    )


@torch.inference_mode()
def _agreement(net: DynamicNet, before: nn.Module, source: Source) -> float:
    ours_n = collect(net, source).logits_nek[:, -1].argmax(-1)
    theirs = []
    with evaluating(before), statistics(before, source.bn):
        like = next(before.parameters())
        theirs = [before(batch.x.to(like)).argmax(-1).cpu() for batch in source]
    return float((ours_n == torch.cat(theirs)).double().mean())
