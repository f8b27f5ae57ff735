"""``dynext convert``: a static net in, a folder with a dynamic one out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import click
import torch
from torch import nn

from dynext.cli.shared.folder import write_folder
from dynext.cli.shared.options import (
    Places,
    device_option,
    json_option,
    model_options,
    open_given,
    output_option,
    seed_option,
)
from dynext.cli.shared.pictures import first_and_last, synthesized
from dynext.cli.shared.rows import drawn, unlabelled_rows
from dynext.cli.shared.show import print_json, timing_lines
from dynext.cli.shared.work import forget_work, work_folder
from dynext.data.samples import Samples
from dynext.io.artifact import PAGE
from dynext.net.timing import Timing, side_by_side
from dynext.reporting.report import report
from dynext.zeroshot.bank import Bank
from dynext.zeroshot.convert import Conversion, Train
from dynext.zeroshot.convert import convert as make_dynamic
from dynext.zeroshot.skip import SKIP_STEPS, SkipKind
from dynext.zeroshot.synth.synthesize import METHODS

TIMED_ROWS = 512


@click.command(short_help="Make a net dynamic and save it.")
@model_options
@output_option("-o", "--output", required=True, help="Where to put it.")
@click.option("--after", type=Places(), help="Where exits stand: layer names or shares of the MACs; else automatic.")
@click.option(
    "--method",
    "--synth",
    type=click.Choice([name for name in METHODS if name != "patches"]),
    default="fitted",
    help="How samples are synthesized.",
)
@click.option(
    "--bank",
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False),
    help="Samples that dynext synthesize has made, instead.",
)
@click.option(
    "--samples", "rows", type=click.IntRange(min=1), default=8192, show_default=True, help="Samples to synthesize."
)
@click.option("--steps", type=click.IntRange(min=0), default=1000, show_default=True, help="Distillation steps.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Plan samples and steps to take so long.")
@click.option(
    "--train",
    type=click.Choice(get_args(Train)),
    default="frozen",
    show_default=True,
    help="frozen distils the exits alone; joint the trunk as well, which takes minutes more.",
)
@click.option(
    "--skip",
    type=click.Choice(get_args(SkipKind)),
    is_flag=False,
    flag_value="skipnet",
    help="Also let samples skip residual blocks; --skip alone is skipnet.",
)
@click.option("--skip-steps", type=click.IntRange(min=2), default=SKIP_STEPS, show_default=True, help="Steps for that.")
@click.option("--calibrate", metavar="DATA", help="Unlabelled images: a folder, a .npz file, or bundled.")
@click.option("--distill-on-calibration", is_flag=True, help="Distil on those images as well: saves far more.")
@click.option("--max-drop", type=click.FloatRange(0, 1), help="Accuracy that may be lost.  [default: 0.01, a point]")
@click.option("--budget", type=click.FloatRange(min=0, min_open=True), help="Share of the static net's MACs to spend.")
@seed_option
@device_option
@json_option
def convert(
    model: str,
    output: Path,
    after: tuple[str, ...] | tuple[float, ...] | None,
    method: str,
    bank: str | None,
    rows: int,
    steps: int,
    minutes: float | None,
    train: Train,
    skip: SkipKind | None,
    skip_steps: int,
    calibrate: str | None,
    distill_on_calibration: bool,
    max_drop: float | None,
    budget: float | None,
    seed: int,
    device: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Make MODEL dynamic and save it, with a report, in DIR. No training image is needed.

    A few hundred unlabelled images of the kind the net is for (--calibrate) make its exits far more useful. Some of
    them are shown in the report. A conversion that was interrupted goes on when the same command is run again.

    \b
    Example: dynext convert bundled:fashion_resnet20 -o fashion --calibrate bundled --distill-on-calibration
    """
    if distill_on_calibration and calibrate is None:
        raise click.UsageError("--distill-on-calibration needs images: give --calibrate DATA too")
    if bank is not None and minutes is not None:
        raise click.UsageError("--minutes plans how many samples to make; with --bank they are there, give --steps")
    made = None if bank is None else Bank.open(bank)
    opened = open_given(model, **given)
    if not opened.trained and opened.recipe["kind"] != "file":
        click.echo(f"Note: {model} has random weights; give --checkpoint, or weights by name@WEIGHTS.", err=True)
    seen = None if calibrate is None else unlabelled_rows(calibrate, opened.spec)
    asked = {
        "model": model, "after": after, "method": method, "bank": bank, "rows": rows, "steps": steps,
        "minutes": minutes, "train": train, "skip": skip, "skip_steps": skip_steps, "calibrate": calibrate,
        "distill_on_calibration": distill_on_calibration, "seed": seed, "spec": asdict(opened.spec),
    }  # fmt: skip
    teacher = opened.model.to(device)
    conversion = make_dynamic(
        teacher,
        spec=opened.spec,
        after=after,
        method=method,
        n=rows,
        distill_on=made,
        steps=steps,
        minutes=minutes,
        train=train,
        skip=skip or False,
        skip_steps=skip_steps,
        calibrate=seen,
        distill_on_calibration=distill_on_calibration,
        max_drop=max_drop,
        budget=budget,
        seed=seed,
        folder=work_folder(output, teacher, seen, asked),
        accelerator=device,
        notify=lambda message: click.echo(f"  {message}", err=True),
    )
    timings, timed_on = _timed(teacher, conversion, seen, distill_on_calibration)
    found = report(conversion.table, conversion.policy)
    clocks = {"timed_on": timed_on, "timing": [asdict(t) for t in timings]}
    provenance = {**conversion.provenance, "model": model, **clocks}
    write_folder(
        output,
        conversion.net,
        policy=conversion.policy,
        table=conversion.table,
        spec=opened.spec,
        model_recipe=opened.recipe,
        class_names=opened.class_names,
        provenance=provenance,
        pictures=_pictures(conversion, seen),
    )
    forget_work(output)
    if as_json:
        print_json({"folder": str(output), "report": found.to_dict(), "provenance": provenance})
        return
    click.echo(f"\n{found}\n")
    click.echo(timing_lines(timings, timed_on))
    click.echo(f"\nSaved in {output}; open {output / PAGE} for the plots.")


def _timed(
    teacher: nn.Module, conversion: Conversion, seen: Samples | None, distilled_on_seen: bool
) -> tuple[tuple[Timing, ...], str]:
    """The clock on real samples if there are any; else on synthesized ones, where it says what exits cost, not save."""
    source = seen if seen is not None else conversion.rows
    x = source.take(drawn(len(source), TIMED_ROWS)).x if isinstance(source, Samples | Bank) else next(iter(source)).x
    x = x.to(next(teacher.parameters()))
    timings = side_by_side(teacher, conversion.net, conversion.policy, x)
    if seen is None:
        return timings, f"{len(x):,} synthesized samples; real samples leave elsewhere (dynext bench DIR --data)"
    if distilled_on_seen:
        return (
            timings,
            f"{len(x):,} calibration samples, which the exits have seen (for others: dynext bench DIR --data)",
        )
    return timings, f"{len(x):,} calibration samples"


def _pictures(conversion: Conversion, seen: Samples | None) -> dict[str, torch.Tensor]:
    found = synthesized(conversion.rows) if isinstance(conversion.rows, Bank) else {}
    return found if seen is None else {**first_and_last(conversion.table, conversion.policy, seen), **found}
