"""From a net and rows to the one small table that everything after training is a function of."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dynext.core.modes import evaluating, statistics
from dynext.core.net import DynamicNet
from dynext.core.table import ExitTable
from dynext.errors import SourceError
from dynext.types import BatchNormMode, Source


@torch.inference_mode()
def collect(net: DynamicNet, source: Source, *, bn: BatchNormMode | None = None, rows: str | None = None) -> ExitTable:
    """Every exit's logits on every row of ``source``: an `ExitTable` with n rows.

    The basis is ``"labels"`` when the source has them, else ``"teacher"`` (agreement with the full net).

    Args:
        bn: which statistics the stages' BatchNorms use; the source's own choice by default (batch statistics for
            synthesized rows). Exits always use their running ones, as they will at run time.
        rows: what the rows are, in words, for reports.

    Raises:
        SourceError: an empty source, or rows of another shape than the net eats.
    """
    if not len(source):
        raise SourceError("the source has no rows; a table needs at least one")
    if tuple(source.shape) != net.staged.input_shape:
        raise SourceError(f"rows of shape {tuple(source.shape)}; the net eats {net.staged.input_shape}")
    mode = bn or source.bn
    like = next(net.parameters())
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    with evaluating(net), statistics(net.staged, mode):
        for batch in source:
            logits.append(net.all_exits(batch.x.to(like)).float().cpu())
            if batch.y is not None:
                labels.append(batch.y.cpu())
    return table_of(
        net,
        torch.cat(logits),
        label_n=torch.cat(labels) if labels else None,
        rows=rows or f"{len(source):,} rows",
        synthetic=mode == "batch",
    )


def timed(table: ExitTable, net: DynamicNet) -> ExitTable:
    """``table`` with the milliseconds of ``net``, whose cost was measured since."""
    found = table_of(net, table.logits_nek, label_n=table.label_n, rows=table.rows, synthetic=table.synthetic)
    return replace(table, trunk_ms_e=found.trunk_ms_e, head_ms_e=found.head_ms_e)


def table_of(
    net: DynamicNet, logits_nek: Tensor, *, label_n: Tensor | None, rows: str, synthetic: bool = False
) -> ExitTable:
    """Logits with this net's names and costs; the milliseconds of a row alone too, where ``net.cost`` was measured."""
    cost = net.cost
    ends = [*(exit.after for exit in net.exits), len(net.staged.stages) - 1]
    return ExitTable(
        logits_nek=logits_nek,
        trunk_macs_e=net.trunk_macs_e,
        head_macs_e=net.head_macs_e,
        label_n=label_n,
        basis="teacher" if label_n is None else "labels",
        name_e=net.exit_names,
        rows=rows,
        synthetic=synthetic,
        trunk_ms_e=None if cost is None else tuple(sum(cost.stage(s, 1) for s in range(end + 1)) for end in ends),
        head_ms_e=None if cost is None else tuple(cost.exit(e, 1) for e in range(net.num_exits)),
    )
