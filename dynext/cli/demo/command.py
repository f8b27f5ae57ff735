"""``dynext demo``: the whole story on the bundled net and the bundled images."""

from __future__ import annotations

import time
import webbrowser
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch

from dynext.atomic import replaced_folder
from dynext.cli.demo.chapters import Chapter, TestBench, final_table
from dynext.cli.demo.trail import easy_and_hard, trail
from dynext.cli.shared.options import output_option, seed_option
from dynext.cli.shared.pictures import NAME, first_and_last, save_pictures, synthesized
from dynext.cli.shared.show import macs
from dynext.data.datasets import bundled_sample
from dynext.data.samples import Samples
from dynext.graph.split import split
from dynext.io.artifact import CARD, FILES, PAGE, save
from dynext.models.catalog import Opened, open_model
from dynext.net.collect import collect
from dynext.reporting.page import write_page
from dynext.zeroshot.bank import Bank
from dynext.zeroshot.convert import Conversion, convert
from dynext.zeroshot.cross_fit import recalibrated
from dynext.zeroshot.settings import Frozen, Run, Synthesis, Unlabelled
from dynext.zeroshot.thresholds import choose_cautiously

MODEL = "bundled:fashion_resnet20"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much work the demo does: synthesized samples, distillation steps, test images (or all), seconds of timing."""

    samples: int
    steps: int
    test: int | None
    timing_s: float


FULL = Sizes(samples=2048, steps=300, test=None, timing_s=2.0)
QUICK = Sizes(samples=1024, steps=100, test=500, timing_s=0.5)


@click.command(short_help="The whole story on a bundled net, in minutes.")
@output_option(
    "--out", "output", default="demo_report", show_default=True, help="Where the last net and the report go."
)
@seed_option
@click.option("--quick", is_flag=True, help="A fraction of the work: to see it run, not for its figures.")
@click.option("--open", "show", is_flag=True, help="Open the report in a browser.")
def demo(output: Path, seed: int, quick: bool, show: bool) -> None:
    """Make a bundled Fashion-MNIST net dynamic in three ways, and say what each loses and saves.

    Everything it needs comes with dynext; nothing is downloaded.

    \b
    Example: dynext demo --out story
    """
    sizes = QUICK if quick else FULL
    began = time.monotonic()
    opened = open_model(MODEL)
    calibration, test = bundled_sample()
    test = test if sizes.test is None else test.subset(torch.arange(sizes.test))
    click.secho("1. The static net", bold=True)
    click.echo(f"   {_described(opened, test)}\n")
    chapters = _chapters(TestBench(opened=opened, test=test, timing_s=sizes.timing_s), calibration, sizes, seed)
    click.secho("What it comes to", bold=True)
    click.echo(final_table(chapters, seed=seed))
    if quick:
        click.echo("A quick run: few samples, few steps, few test images. Leave --quick out for figures worth quoting.")
    _follow(chapters[-1], opened, test)
    _keep(output, opened, chapters, test, {"seed": seed, "quick": quick, **asdict(sizes)})
    click.echo(f"\n{time.monotonic() - began:.0f} s in all. The report, with plots: {(output / PAGE).absolute()}")
    click.echo(f"The last net is in {output}; next: dynext evaluate {output} --data bundled")
    if show:
        webbrowser.open((output / PAGE).absolute().as_uri())


def _described(opened: Opened, test: Samples) -> str:
    parameters = sum(p.numel() for p in opened.model.parameters())
    size = "x".join(map(str, opened.spec.shape))
    cost = split(opened.model, torch.zeros(1, *opened.spec.shape)).macs
    with torch.inference_mode():
        right = sum(int((opened.model(batch.x).argmax(1) == batch.y).sum()) for batch in test)
    return (
        f"{MODEL}: {parameters:,} parameters, {macs(cost)} MACs an image of {size}.\n"
        f"   Accuracy {right / len(test):.2%} on {len(test):,} Fashion-MNIST test images "
        f"((c) 2017 Zalando SE, MIT licence)."
    )


def _chapters(bench: TestBench, calibration: Samples, sizes: Sizes, seed: int) -> list[Chapter]:
    """Three nets out of one bank of synthesized samples; the first two even share their exits."""
    model, spec, count = bench.opened.model, bench.opened.spec, len(calibration)
    alone = bench.chapter(
        "2. Made dynamic without any image",
        "no image at all",
        lambda: convert(
            model, spec, synthesis=Synthesis(n=sizes.samples), training=Frozen(steps=sizes.steps), run=Run(seed=seed)
        ),
    )
    rechosen = bench.chapter(
        f"3. The same exits; class biases, temperatures and thresholds from {count} unlabelled images",
        f"{count} unlabelled images",
        lambda: _rechosen(alone.conversion, calibration),
    )
    distilled = bench.chapter(
        f"4. The same {count} images distilled on as well (the synthesized samples are those of 2.)",
        "also distilled on them",
        lambda: convert(
            model,
            spec,
            synthesis=alone.conversion.samples,
            training=Frozen(steps=sizes.steps),
            calibrate=Unlabelled(calibration, distill=True),
            run=Run(seed=seed),
        ),
    )
    return [alone, rechosen, distilled]


def _rechosen(conversion: Conversion, calibration: Samples) -> Conversion:
    """Other class biases, temperatures and thresholds, as `convert` takes them from ``calibrate``."""
    table = collect(conversion.net, calibration, rows=f"{len(calibration):,} unlabelled images")
    net, table = recalibrated(conversion.net, table)
    return replace(conversion, net=net, table=table, policy=choose_cautiously([table]))


def _follow(chapter: Chapter, opened: Opened, test: Samples) -> None:
    names = opened.class_names or tuple(map(str, range(opened.num_classes)))
    policy = chapter.conversion.policy
    for words, row in zip(("An easy image", "A hard one"), easy_and_hard(chapter.table, policy), strict=True):
        click.secho(f"\n{words} on its way through the exits (test image {row})", bold=True)
        pixels = test.spec.pixels(test.take(torch.tensor([row])).x)[0]
        click.echo(trail(chapter.table, policy, row, pixels, names))


def _keep(output: Path, opened: Opened, chapters: Sequence[Chapter], test: Samples, given: dict[str, Any]) -> None:
    """The last net as a folder, with a report on all three."""
    last, bank = chapters[-1], chapters[0].conversion.samples
    pictures = first_and_last(last.table, last.conversion.policy, test)
    provenance = {"model": MODEL, **last.conversion.provenance, **given}
    if isinstance(bank, Bank):
        pictures |= synthesized(bank)
        provenance["method"] = bank.provenance.method
    with replaced_folder(output, mark=CARD, owned=(*FILES, NAME)) as partial:
        save(
            last.conversion.net,
            partial,
            policy=last.conversion.policy,
            spec=opened.spec,
            model_recipe=opened.recipe,
            class_names=opened.class_names,
            table=last.conversion.table,
            provenance=provenance,
        )
        write_page(
            partial / PAGE,
            title="A Fashion-MNIST net, made dynamic in three ways",
            reports=[(c.title, c.table, c.conversion.policy, c.outcome) for c in reversed(chapters)],
            pictures=pictures,
            timing={c.title: {f"batch {t.batch}": asdict(t) for t in c.timings} for c in chapters},
            provenance=provenance,
        )
        save_pictures(partial, pictures)
