"""``dynext convert``: a static net in, a folder with a dynamic one out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import nn

from dynext.cli.shared.folder import write_folder
from dynext.cli.shared.options import (
    Places,
    device_option,
    json_option,
    model_options,
    opened_with_note,
    output_option,
    strict_option,
)
from dynext.cli.shared.pictures import first_and_last, synthesized
from dynext.cli.shared.progress import progress_shown
from dynext.cli.shared.samples import drawn, unlabelled_samples
from dynext.cli.shared.settings import settings_of, settings_options
from dynext.cli.shared.show import print_json, timing_lines
from dynext.cli.shared.work import forget_work, forgets_refused, work_folder
from dynext.data.samples import Samples
from dynext.io.artifact import PAGE
from dynext.models.catalog import Opened
from dynext.net.timing import Timing, side_by_side
from dynext.reporting.report import report
from dynext.zeroshot.bank import Bank
from dynext.zeroshot.convert import Conversion
from dynext.zeroshot.convert import convert as make_dynamic
from dynext.zeroshot.settings import (
    TRAININGS,
    Exits,
    Frozen,
    Joint,
    Run,
    Skip,
    Synthesis,
    Target,
    Unlabelled,
    training_named,
)
from dynext.zeroshot.synth.registry import METHODS

TIMED_SAMPLES = 512
MADE_WITHOUT_IMAGES = [name for name in METHODS if name != "patches"]


@click.command(short_help="Make a net dynamic and save it.")
@model_options
@output_option("-o", "--output", required=True, help="Where to put it.")
@click.option("--after", type=Places(), help="Where exits stand: layer names or shares of the MACs; else automatic.")
@click.option("--heads", metavar="NAME", help="default, pooled, ..., a registered name, or package.module:name.")
@click.option(
    "--bank",
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False),
    help="Samples that dynext synthesize has made, instead.",
)
@click.option(
    "--train",
    type=click.Choice(TRAININGS),
    default="frozen",
    show_default=True,
    help="The exits alone, the trunk too, or one of three ways to skip residual blocks as well.",
)
@click.option("--calibrate", metavar="DATA", help="Unlabelled images: a folder, a .npz file, or bundled.")
@strict_option
@click.option("--distill-on-calibration", is_flag=True, help="Distil on those images as well: saves far more.")
@settings_options(
    Synthesis, Frozen, Joint, Skip, Target, Run, types={"method": click.Choice(MADE_WITHOUT_IMAGES), "seed": click.INT}
)
@device_option
@json_option
@forgets_refused
def convert(
    model: str,
    output: Path,
    after: tuple[str, ...] | tuple[float, ...] | None,
    heads: str | None,
    bank: str | None,
    train: str,
    calibrate: str | None,
    strict: bool,
    distill_on_calibration: bool,
    device: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Make MODEL dynamic and save it, with a report, in DIR. No training image is needed.

    A few hundred unlabelled images of the kind the net is for (--calibrate) make its exits far more useful; the report
    shows some. An interrupted conversion goes on when the same command is run again.

    \b
    Example: dynext convert bundled:fashion_resnet20 -o fashion --calibrate bundled --distill-on-calibration
    """
    if distill_on_calibration and calibrate is None:
        raise click.UsageError("--distill-on-calibration needs images: give --calibrate DATA too")
    synthesis = settings_of(Synthesis, given) if bank is None else Bank.open(bank)
    opened = opened_with_note(model, given)
    seen = None if calibrate is None else unlabelled_samples(calibrate, opened.spec, strict=strict)
    teacher = opened.model.to(device)
    training = training_named(train, **{name: given[name] for name in ("steps", "joint_steps", "skip_steps")})
    asked: dict[str, Any] = {
        "model": model,
        "after": after,
        "bank": bank,
        "train": train,
        "training": asdict(training),
        "calibrate": calibrate,
    }
    asked |= {"distill": distill_on_calibration, "spec": asdict(opened.spec)}
    asked |= {name: given[name] for name in ("method", "n", "minutes", "seed")}
    asked |= {} if heads is None else {"heads": heads}
    work = work_folder(output, teacher, seen, asked)
    with progress_shown():
        conversion = make_dynamic(
            teacher,
            opened.spec,
            calibrate=None if seen is None else Unlabelled(seen, distill=distill_on_calibration),
            exits=Exits(after=after, heads=heads),
            synthesis=synthesis,
            training=training,
            target=settings_of(Target, given),
            run=settings_of(Run, given, folder=work, accelerator=device),
        )
    saved = _saved(output, model, opened, conversion, seen, _timed(teacher, conversion, seen, distill_on_calibration))
    forget_work(output)
    _print(output, conversion, saved, as_json=as_json)


class _Timed(NamedTuple):
    timings: tuple[Timing, ...]
    timed_on: str


def _saved(
    output: Path, model: str, opened: Opened, conversion: Conversion, seen: Samples | None, clock: _Timed
) -> dict[str, Any]:
    """What was written of how the net came about, besides the net and its report."""
    timing = [asdict(timing) for timing in clock.timings]
    provenance = {**conversion.provenance, "model": model, "timed_on": clock.timed_on, "timing": timing}
    write_folder(
        output,
        conversion.net,
        opened,
        policy=conversion.policy,
        table=conversion.table,
        provenance=provenance,
        pictures=_pictures(conversion, seen),
    )
    return provenance


def _print(output: Path, conversion: Conversion, provenance: dict[str, Any], *, as_json: bool) -> None:
    outcome = report(conversion.table, conversion.policy)
    if as_json:
        print_json({"folder": str(output), "report": outcome.to_dict(), "provenance": provenance})
        return
    click.echo(f"\n{outcome}\n")
    click.echo(timing_lines([Timing(**timing) for timing in provenance["timing"]], provenance["timed_on"]))
    for note in [*provenance["notes"], *_slower(provenance["timing"])]:
        click.echo(f"Note: {note}")
    click.echo(f"\nSaved in {output}; open {output / PAGE} for the plots.")


def _slower(timing: list[dict[str, Any]]) -> list[str]:
    """Batch sizes at which the clock says that the dynamic net is slower."""
    slow = [f"batch {one['batch']} ({1 / one['speedup']:.2f} times as long)" for one in timing if one["speedup"] < 1]
    return [f"the dynamic net takes longer than the static one at {' and '.join(slow)}"] if slow else []


def _timed(teacher: nn.Module, conversion: Conversion, seen: Samples | None, distilled_on_seen: bool) -> _Timed:
    """The clock on real samples if there are any; else on synthesized ones, where it says what exits cost, not save."""
    source = seen if seen is not None else conversion.samples
    x = source.take(drawn(len(source), TIMED_SAMPLES)).x if isinstance(source, Samples | Bank) else next(iter(source)).x
    x = x.to(next(teacher.parameters()))
    timings = side_by_side(teacher, conversion.net, conversion.policy, x)
    if seen is None:
        kind = "synthesized samples; real samples leave elsewhere (dynext bench DIR --data)"
    elif distilled_on_seen:
        kind = "calibration samples, which the exits have seen (for others: dynext bench DIR --data)"
    else:
        kind = "calibration samples"
    return _Timed(timings, f"{len(x):,} {kind}")


def _pictures(conversion: Conversion, seen: Samples | None) -> dict[str, torch.Tensor]:
    bank = synthesized(conversion.samples) if isinstance(conversion.samples, Bank) else {}
    return bank if seen is None else {**first_and_last(conversion.table, conversion.policy, seen), **bank}
