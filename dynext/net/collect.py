"""From a net and samples to the one small table that everything after training is a function of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from dynext.data.given import takes_data
from dynext.data.indexing import check_samples
from dynext.modules.modes import evaluating, statistics
from dynext.net.dynamic_net import DynamicNet
from dynext.net.masked_pass import gated, greedy, trunk_macs
from dynext.policy.policy import Policy
from dynext.policy.skip_record import Skipped
from dynext.policy.table import ExitTable
from dynext.types import BatchNormMode, Data, InputSpec
from dynext.usual_modes import in_usual_modes


@in_usual_modes
@takes_data("source")
@torch.inference_mode()
def collect(
    net: DynamicNet,
    source: Data,
    *,
    keep: Sequence[float | None] | None = None,
    static: nn.Module | None = None,
    bn: BatchNormMode | None = None,
    rows: str | None = None,
    spec: InputSpec | None = None,
) -> ExitTable:
    """Every exit's logits on every sample of ``source``: an `ExitTable`, one row a sample.

    The basis is ``"labels"`` when the source has them, else ``"teacher"`` (agreement with the full net).

    Args:
        keep: the skip rule, as `Policy.keep_g`: samples skip stages by it, and the table says what that does to them.
        static: with ``keep``, the static net to agree with, where training has changed this one's weights; by default
            this one with every stage run.
        bn: which statistics the stages' BatchNorms use; the source's own choice by default (batch statistics for
            synthesized samples). Exits and gates always use their running ones, as they will at run time.
        rows: what the samples are, in words, for reports.

    Samples that the exits have learned from are recognized by what they show; the table marks them, and the note of a
    policy that is chosen on it says so.

    Raises:
        SourceError: an empty source, or samples of another shape than the model expects.
        PolicyError: a skip rule for a net without gates, or with another number of them.
    """
    check_samples(source, net.staged.input_shape)
    rule = replace(Policy.never(net.num_exits), keep_g=None if keep is None else tuple(keep))
    rule.check_gates(net.num_gates)
    full = static if static is not None else net.staged
    mode = bn or source.bn
    like = next(net.parameters())
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    skips: list[Skipped] = []
    known: list[Tensor] = []
    with evaluating(net), evaluating(full), statistics(net.staged, mode), statistics(full, mode):
        for batch in source:
            x = batch.x.to(like)
            known += [net.seen.known(batch.x)] if net.seen and source.bn != "batch" else []
            if rule.skip_rule is None:
                logits.append(net.all_exits(x).float().cpu())
            else:
                logits_bek, skipped = _skipping(net, x, rule.skip_rule)
                logits.append(logits_bek)
                skips.append(replace(skipped, full_nk=full(x).float().cpu()))
            if batch.y is not None:
                labels.append(batch.y.cpu())
    table = table_of(
        net,
        torch.cat(logits),
        label_n=torch.cat(labels) if labels else None,
        rows=rows or f"{len(source):,} samples",
        synthetic=mode == "batch",
        skipped=Skipped.join(skips) if skips else None,
    )
    return marked(table, torch.cat(known)) if known else table


def marked(table: ExitTable, known_n: Tensor) -> ExitTable:
    """``table`` with the samples ``[n]`` among it that the exits have learned from; as it is where there is none."""
    return replace(table, learned_n=known_n) if known_n.any() else table


def timed(table: ExitTable, net: DynamicNet) -> ExitTable:
    """``table`` with the milliseconds of ``net``, whose cost was measured since."""
    with_ms = table_of(net, table.logits_nek, label_n=table.label_n, rows=table.rows, skipped=table.skipped)
    return replace(table, trunk_ms_e=with_ms.trunk_ms_e, head_ms_e=with_ms.head_ms_e)


def _skipping(net: DynamicNet, x: Tensor, keep_g: tuple[float | None, ...]) -> tuple[Tensor, Skipped]:
    """Every exit's logits ``[b e k]`` where samples skip by ``keep_g``, and what they skipped; the caller fills in the
    full net's logits.
    """
    passed = gated(net, x, greedy(keep_g), [keep is not None for keep in keep_g])
    early = [exit(tap) for exit, tap in zip(net.exits, passed.taps, strict=True)]
    skipped = Skipped(
        keep_g=keep_g,
        ran_ng=(passed.run_bg > 0).cpu(),
        macs_ne=trunk_macs(net, passed.run_bg, keep_g).cpu(),
        full_nk=torch.empty(0),
    )
    return torch.stack([*early, passed.logits_bk], dim=1).float().cpu(), skipped


def table_of(
    net: DynamicNet,
    logits_nek: Tensor,
    *,
    label_n: Tensor | None,
    rows: str,
    synthetic: bool = False,
    skipped: Skipped | None = None,
) -> ExitTable:
    """Logits with this net's names and costs; also the milliseconds that one sample takes, where ``net.cost`` was
    measured and every sample runs every stage.
    """
    cost = net.cost if skipped is None else None
    ends = net.exit_stages
    return ExitTable(
        logits_nek=logits_nek,
        trunk_macs_e=net.trunk_macs_e,
        head_macs_e=net.head_macs_e,
        label_n=label_n,
        basis="teacher" if label_n is None else "labels",
        name_e=net.exit_names,
        rows=rows,
        synthetic=synthetic,
        skipped=skipped,
        trunk_ms_e=None if cost is None else tuple(sum(cost.stage(s, 1) for s in range(end + 1)) for end in ends),
        head_ms_e=None if cost is None else tuple(cost.exit(e, 1) for e in range(net.num_exits)),
    )
