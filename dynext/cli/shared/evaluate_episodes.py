"""``dynext evaluate --episodes``: accuracy on few-shot episodes, per exit and under the saved policy."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from dynext.cli.shared.classes import SPLIT, class_rows, episodes_of, same_data, split_rows
from dynext.cli.shared.show import columns, print_json
from dynext.errors import SourceError
from dynext.io.artifact import Artifact
from dynext.meta.few_shot import FewShot, MeanAccuracy, evaluate_episodes
from dynext.meta.start import FILE, MetaStart


def judge_on_episodes(
    folder: Path,
    kept: Artifact,
    data: str,
    *,
    opened: dict[str, Any],
    count: int,
    shaped: dict[str, Any],
    as_json: bool,
) -> None:
    """Print what the net in ``folder`` learns from ``count`` episodes of ``data``.

    Where it was meta-trained on some classes of the same data, the others are used, and the output says so.
    """
    rows = class_rows(data, kept.spec, **opened)
    taught = str(kept.provenance["data"]) if SPLIT in kept.provenance else None
    split = kept.provenance[SPLIT] if taught is not None and same_data(taught, data) else None
    apart = None if split is None else split_rows(rows, split, kept.provenance["seed"])[1]
    start = MetaStart.read(folder / FILE, kept.net) if (folder / FILE).exists() else kept.net
    if isinstance(start, MetaStart) and start.inner.rule != "prototypes" and shaped["way"] != kept.net.num_classes:
        way = kept.net.num_classes
        raise SourceError(f"{shaped['way']}-way episodes for a net meta-trained on {way}-way ones; give --way {way}")
    shots = evaluate_episodes(start, episodes_of(apart or rows, shaped, seed=1), count=count)
    told = f"{count} {shaped['way']}-way {shaped['shot']}-shot episodes of " + (
        f"the classes of {data} that training did not see" if apart is not None else f"all classes of {data}"
    )
    if apart is None and taught is not None:
        told += ", which training saw" if same_data(taught, data) else f"; training saw classes of {taught}"
    dynamic, spent = shots.under(replace(kept.policy, keep_g=None))
    if kept.policy.skip_rule is not None:
        told += "; exits alone, no block is skipped"
    if as_json:
        shares = [_plain(share) for share in shots.accuracy_e]
        under = {**_plain(dynamic), "macs": spent}
        print_json({"folder": str(folder), "episodes": told, "exits": shares, "saved_policy": under})
        return
    click.echo(f"{told}; accuracy with 95 % intervals over episodes, labels are the basis:\n")
    click.echo(_lines(shots, dynamic, spent))


def _plain(share: MeanAccuracy) -> dict[str, float | None]:
    """JSON, which knows no infinity: one episode has no interval."""
    return {"mean": share.mean, "half": share.half if math.isfinite(share.half) else None}


def _lines(shots: FewShot, dynamic: object, spent: float) -> str:
    table = shots.table
    macs_e = [(t + h) / max(table.static_macs, 1) for t, h in zip(table.trunk_macs_e, table.head_macs_e, strict=True)]
    names = table.name_e or tuple(str(e) for e in range(table.num_exits))
    lines = [("exit", "after", "MACs", "accuracy")]
    lines += [(str(e), names[e], f"{macs_e[e]:.0%}", str(share)) for e, share in enumerate(shots.accuracy_e)]
    lines.append(("policy", "where it is sure", f"{spent:.0%}", str(dynamic)))
    return columns(lines, left=(0, 1))
