"""``dynext bench``: milliseconds of the dynamic net against the static one."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import torch

from dynext.atomic import check_writable, replaced_folder
from dynext.cli.shared.options import artifact_options, data_options, device_option, json_option, open_artifact
from dynext.cli.shared.samples import drawn, samples_to_time
from dynext.cli.shared.show import print_json, timing_lines
from dynext.errors import PolicyError
from dynext.io.artifact import CARD, FILES, PAGE, Artifact, save
from dynext.net.collect import timed
from dynext.net.measure import measure
from dynext.net.timing import side_by_side
from dynext.policy.choose import choose
from dynext.policy.policy import Policy

TIMED_ROWS = 1024


@click.command(short_help="Milliseconds against the static net.")
@artifact_options
@click.option(
    "--batch", "batches", type=click.IntRange(min=1), multiple=True, help="Samples a batch; repeat.  [default: 1, 64]"
)
@click.option("--write", is_flag=True, help="Measure each stage on this machine too, and keep that in DIR.")
@click.option(
    "--budget-ms",
    type=click.FloatRange(min=0, min_open=True),
    help="Choose thresholds that take at most so long a sample, one at a time, by those times; keep them in DIR.",
)
@data_options(required=False, labels=False)
@device_option
@json_option
def bench(
    folder: Path,
    model: str | None,
    arguments: tuple[tuple[str, Any], ...],
    trust: bool,
    batches: tuple[int, ...],
    write: bool,
    budget_ms: float | None,
    data: str | None,
    root: Path | None,
    download: bool,
    strict: bool,
    device: str,
    as_json: bool,
) -> None:
    """Time the dynamic net in DIR against its static net: in turn, on the same samples, in this process.

    The samples are --data, or the bundled sample where it fits the net, or else random noise, on which the share of
    samples leaving early means nothing.

    \b
    Example: dynext bench fashion --batch 1 --batch 256
             dynext bench fashion --write --budget-ms 2.5
    """
    if write or budget_ms is not None:
        check_writable(folder)
    kept = open_artifact(folder, model, arguments, trust=trust)
    rows, words, real = samples_to_time(data, kept.spec, root=root, download=download, strict=strict)
    net = kept.net.to(device)
    if write:
        net.cost = measure(net)
        kept = replace(kept, cost=net.cost, table=None if kept.table is None else timed(kept.table, net))
    if budget_ms is not None:
        kept = replace(kept, policy=_within(kept, budget_ms))
    if write or budget_ms is not None:
        _write(folder, kept)
    x = rows.take(drawn(len(rows), TIMED_ROWS)).x.to(next(net.parameters()))
    leaving = net.run(x, kept.policy).exit.bincount(minlength=net.num_exits).double() / len(x)
    timings = side_by_side(net.staged, net, kept.policy, x, batches=batches or (1, 64))
    if as_json:
        clocks = {"rows": words, "real": real, "leaving": leaving.tolist(), "timing": [asdict(t) for t in timings]}
        print_json({"folder": str(folder), "device": device, "threads": torch.get_num_threads(), **clocks})
        return
    click.echo(timing_lines(timings, words if len(x) == len(rows) else f"{len(x):,} of {words}"))
    shares = ", ".join(
        f"{share:.0%} after {name}" for share, name in zip(leaving.tolist(), net.exit_names, strict=True)
    )
    click.echo(f"Samples leave {shares}.")
    if not real:
        click.echo("These samples are noise: where they leave says nothing about real ones. Give --data to time those.")
    if write:
        click.echo(f"Measured stage times are kept in {folder}; runs gather samples by them.")
    if budget_ms is not None:
        click.echo(f"Thresholds chosen for {budget_ms:g} ms a sample are kept in {folder}: {kept.policy.note}")


def _within(kept: Artifact, budget_ms: float) -> Policy:
    """Thresholds for a time, chosen on the folder's own table at the temperatures of its policy."""
    if kept.table is not None:
        kept.table.check_whole("a budget in milliseconds")
    if kept.table is None or kept.table.trunk_ms_e is None:
        raise PolicyError("no stage times are kept with this net's table; measure them: dynext bench DIR --write")
    old = kept.policy
    return choose(kept.table, budget_ms=budget_ms, temperature=old.temperature_e, confidence=old.confidence)


def _write(folder: Path, kept: Artifact) -> None:
    """The same folder with the new times and thresholds; the report that was there stays."""
    with replaced_folder(folder, mark=CARD, owned=[name for name in FILES if name != PAGE]) as partial:
        save(
            kept.net,
            partial,
            policy=kept.policy,
            spec=kept.spec,
            model_recipe=kept.model_recipe,
            class_names=kept.class_names,
            table=kept.table,
            provenance=kept.provenance,
        )
