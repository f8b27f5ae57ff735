"""``dynext prune``: a dynamic net's folder in, a smaller net's folder out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from dynext.cli.shared.folder import write_folder
from dynext.cli.shared.options import (
    artifact_options,
    json_option,
    open_artifact,
    output_option,
    seed_option,
    strict_option,
)
from dynext.cli.shared.pictures import first_and_last, synthesized
from dynext.cli.shared.samples import unlabelled_samples
from dynext.cli.shared.show import print_json
from dynext.data.samples import Samples
from dynext.io.artifact import Artifact
from dynext.net.collect import collect
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.choose import DEFAULT_MAX_DROP
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable
from dynext.prune.apply import check_prunable
from dynext.prune.pipeline import Pruned, make_smaller
from dynext.prune.ranking import By, Removal
from dynext.reporting.report import report
from dynext.zeroshot.bank import Bank
from dynext.zeroshot.few_images import Judged, too_few, without_images
from dynext.zeroshot.synth.method import Method
from dynext.zeroshot.synth.synthesize import synthesize
from dynext.zeroshot.thresholds import CAUTION, choose_cautiously, choose_unseen

METHOD = "fitted"
WAYS = [way for way in get_args(By) if way != "attention"]


@click.command(short_help="Make the dynamic net smaller.")
@artifact_options
@output_option("-o", "--output", required=True, help="Where to put the smaller net.")
@click.option(
    "--budget",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    help="Share of the full net's MACs to keep.  [default: 1, nothing is removed]",
)
@click.option("--quantize", "bits", type=click.Choice(["int8"]), help="Put what is left into 8 bits.")
@click.option(
    "--by", type=click.Choice(WAYS), default="magnitude", show_default=True, help="What channels are ranked by."
)
@click.option("--blocks", type=click.IntRange(min=0), default=0, help="Residual blocks to leave out (cut by blocks).")
@click.option("--unused-exits", is_flag=True, help="Leave out exits that the saved thresholds never use.")
@click.option("--unlabelled", metavar="DATA", help="Images without labels to work on; else samples are synthesized.")
@strict_option
@click.option(
    "--samples", "rows", type=click.IntRange(min=1), default=4096, show_default=True, help="Samples to synthesize."
)
@click.option("--steps", type=click.IntRange(min=0), default=1000, show_default=True, help="Fine-tuning steps.")
@click.option("--max-drop", type=click.FloatRange(0, 1), help="Accuracy that may be lost.  [default: 0.01]")
@seed_option
@json_option
def prune(
    folder: Path,
    model: str | None,
    arguments: tuple[tuple[str, Any], ...],
    trust: bool,
    output: Path,
    budget: float,
    bits: str | None,
    by: str,
    blocks: int,
    unused_exits: bool,
    unlabelled: str | None,
    strict: bool,
    rows: int,
    steps: int,
    max_drop: float | None,
    seed: int,
    as_json: bool,
) -> None:
    """Remove channels (and blocks, and exits) from the dynamic net in DIR, fine-tune it, and put it into 8 bits.

    The net before is the teacher: no label is needed, and with no images of yours samples are synthesized out of it.
    Thresholds are chosen anew, and what the smaller net has lost already is taken off what they may lose.

    \b
    Example: dynext prune fashion --budget 0.5 --quantize int8 --unlabelled photos -o small
    """
    if budget == 1 and bits is None and not blocks and not unused_exits:
        raise click.UsageError("nothing to do: give --budget below 1, --quantize, --blocks or --unused-exits")
    kept = open_artifact(folder, model, arguments, trust=trust)
    check_prunable(kept.net)  # before samples are synthesized
    seen = None if unlabelled is None else unlabelled_samples(unlabelled, kept.spec, strict=strict)
    source = seen if seen is not None else _bank(kept, METHOD, rows, seed)
    made = make_smaller(
        kept.net,
        source,
        remove=Removal(
            budget=budget,
            by=by,  # type: ignore[arg-type]
            blocks=blocks,
            policy=kept.policy if unused_exits else None,
        ),
        steps=steps,
        bits=bits,  # type: ignore[arg-type]
        seed=seed,
    )
    policy, table = _thresholds(kept, made, seen, max_drop, seed)
    _write(output, kept, made, policy, table, source, f"--budget {budget:g} --steps {steps} on {table.rows}")
    outcome = report(table, policy)
    if as_json:
        print_json({"folder": str(output), "pruned": made.to_dict(), "report": outcome.to_dict()})
        return
    click.echo(f"{made}\n\nThresholds chosen anew:\n\n{outcome}\n\nThe smaller net is in {output}.")


def _bank(kept: Artifact, method: Method, count: int, seed: int) -> Bank:
    return synthesize(kept.net.staged, shape=kept.spec.shape, n=count, seed=seed, spec=kept.spec, method=method)


def _thresholds(
    kept: Artifact, made: Pruned, seen: Samples | None, max_drop: float | None, seed: int
) -> tuple[Policy, ExitTable]:
    """For images of the kind to come, or else for synthesized samples of two kinds."""
    before: DynamicNet = kept.net
    loss = DEFAULT_MAX_DROP if max_drop is None else max_drop
    by_images = None
    if seen is not None:
        table = collect(made.net, seen, rows=f"{len(seen):,} unlabelled samples")
        by_images = Judged(policy=choose_cautiously([table], max_drop=loss, spent=1 - made.agreement), table=table)
        if not loss or not too_few(len(seen), CAUTION * loss):
            return by_images.policy, table
    unseen = choose_unseen(
        made.net, before.staged, lambda method, count: _bank(kept, method, count, seed + 1), METHOD, max_drop=loss
    )
    if by_images is None:
        return unseen.policy, unseen.table
    known = Judged(policy=unseen.policy, table=by_images.table)
    taken = without_images(known, by_images, max_drop=loss, allowed=CAUTION * loss) or by_images
    return taken.policy, taken.table


def _write(
    output: Path, kept: Artifact, made: Pruned, policy: Policy, table: ExitTable, source: Samples | Bank, told: str
) -> None:
    untimed = {key: value for key, value in kept.provenance.items() if key not in ("timing", "timed_on")}
    pictures = synthesized(source) if isinstance(source, Bank) else first_and_last(table, policy, source)
    write_folder(
        output,
        made.net,
        kept,
        policy=policy,
        table=table,
        provenance={**untimed, "pruned": made.to_dict(), "pruned_with": told},
        pictures=pictures,
    )
