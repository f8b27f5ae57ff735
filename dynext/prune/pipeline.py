"""A smaller dynamic net in one call: plan, apply, fine-tune, quantize, and count how many answers have changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from typing_extensions import Unpack

from dynext.brief import short_repr
from dynext.data.given import LearnOptions, takes_data
from dynext.errors import FitError, PlanError
from dynext.fitting import FitConfig, configured
from dynext.graph.macs import param_bytes
from dynext.modules.modes import evaluating, statistics
from dynext.net.collect import collect
from dynext.net.dynamic_net import DynamicNet
from dynext.prune.apply import apply_plan
from dynext.prune.finetuning import USUAL, finetune
from dynext.prune.plan import PruningPlan
from dynext.prune.quantization import quantize
from dynext.prune.ranking import Removal, rank
from dynext.types import Data, Source
from dynext.usual_modes import in_usual_modes

Bits = Literal["int8"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pruned:
    """A smaller net, the plan that led to it, and how often it answers like the net before."""

    __repr__ = short_repr

    net: DynamicNet
    plan: PruningPlan
    agreement: float
    """Share of the samples on which its full net answers like the full net before."""
    rows: int
    """How many samples that were."""
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


@in_usual_modes
@takes_data("source", "held_out")
def make_smaller(
    net: DynamicNet,
    source: Data,
    config: FitConfig | None = None,
    *,
    remove: Removal,
    bits: Bits | None = None,
    held_out: Data | None = None,
    **options: Unpack[LearnOptions],
) -> Pruned:
    """`dynext.prune.rank`, `dynext.prune.apply_plan`, `dynext.prune.finetune` and `dynext.prune.quantize` in one call.

    Args:
        source: samples to rank by, to fine-tune on and to calibrate 8 bits on; labelled, unlabelled or synthesized.
        config: of the fine-tuning; its seed is also that of the calibration. With ``steps=0`` there is none.
        remove: what goes, such as ``dx.prune.Removal(budget=0.5)``. Not ``by="attention"``, which needs masks.
        bits: ``"int8"`` puts the smaller net into 8 bits.
        held_out: samples on which agreement with the net before is counted; those of ``source`` by default.
        options: fields of `dynext.FitConfig`.

    Raises:
        PlanError, FitError, SourceError: as the four.
    """
    config = configured(USUAL, config, options)
    if bits not in (None, "int8"):
        raise FitError(f"bits={bits!r}; give 'int8', or None for floats")
    if remove.by == "attention":
        raise PlanError(
            "attention ranks by masks that were distilled before; call dx.prune.rank(..., auxiliary=) in its place"
        )
    plan = rank(net, source=source, **vars(remove))
    small = apply_plan(net, plan)
    if config.steps and plan:
        small = finetune(small, net.staged, source, config)
    if bits is not None:
        small = quantize(small, source, seed=config.seed)
    compared = source if held_out is None else held_out
    return Pruned(
        net=small,
        plan=plan,
        agreement=_agreement(small, net.staged, compared),
        rows=len(compared),
        bytes_before=param_bytes(net),
        bytes_after=param_bytes(small),
    )


@torch.inference_mode()
def _agreement(net: DynamicNet, before: nn.Module, source: Source) -> float:
    ours_n = collect(net, source).logits_nek[:, -1].argmax(-1)
    with evaluating(before), statistics(before, source.bn):
        like = next(before.parameters())
        theirs = [before(batch.x.to(like)).argmax(-1).cpu() for batch in source]
    return float((ours_n == torch.cat(theirs)).double().mean())
