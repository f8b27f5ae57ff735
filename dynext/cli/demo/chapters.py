"""The demo's chapters: a dynamic net each, judged and timed on the same test images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import click
import torch

from dynext.cli.shared.show import columns, macs, points, threads
from dynext.data.samples import Samples
from dynext.models.catalog import Opened
from dynext.net.collect import collect
from dynext.net.timing import Timing, side_by_side
from dynext.policy.table import ExitTable
from dynext.reporting.report import Report, report
from dynext.zeroshot.convert import Conversion

TIMED_ROWS = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class Chapter:
    """One dynamic net on the test images."""

    title: str
    conversion: Conversion
    table: ExitTable
    outcome: Report
    timings: tuple[Timing, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class TestBench:
    """The static net, and the labelled test images that nothing is ever chosen on."""

    opened: Opened
    test: Samples
    timing_s: float

    def chapter(self, heading: str, title: str, make: Callable[[], Conversion]) -> Chapter:
        """Make a net, judge it, tell of it."""
        click.secho(heading, bold=True)
        began = time.monotonic()
        conversion = make()
        took = time.monotonic() - began
        table = collect(conversion.net, self.test, rows=f"{len(self.test):,} Fashion-MNIST test images")
        outcome = report(table, conversion.policy)
        x = self.test.take(torch.arange(min(len(self.test), TIMED_ROWS))).x
        timings = side_by_side(self.opened.model, conversion.net, conversion.policy, x, budget_s=self.timing_s)
        verdict = conversion.policy.note.partition(". ")[0]
        rechosen = f"Chosen on {conversion.table.rows} (by agreement with the full net, no label): {verdict}."
        click.echo(click.wrap_text(rechosen, 110, "   ", "   "))
        lost = points((outcome.static_accuracy or 0.0) - (outcome.accuracy or 0.0))
        click.echo(
            f"   Test images: accuracy {outcome.accuracy:.2%}, {lost} points lost, {outcome.saved:.1%} of MACs saved."
        )
        click.echo(f"   Took {took:.0f} s.\n")
        return Chapter(title=title, conversion=conversion, table=table, outcome=outcome, timings=timings)


def final_table(chapters: Sequence[Chapter], *, seed: int) -> str:
    """All chapters below the static net, and what the figures rest on."""
    outcome = chapters[0].outcome
    per_batch = list(zip(*(chapter.timings for chapter in chapters), strict=True))
    titles = [title for timings in per_batch for title in (f"ms, batch {timings[0].batch}", "speed-up")]
    static = [fmean(t.static_ms for t in timings) for timings in per_batch]
    times = [cell for ms in static for cell in (f"{ms:.2f}", "1.00x")]
    lines = [
        ("", "accuracy", "points lost", "MACs an image", "saved", *titles),
        ("static net", f"{outcome.static_accuracy:.2%}", "-", macs(outcome.static_macs), "-", *times),
        *(_line(chapter, static) for chapter in chapters),
    ]
    share = outcome.static_accuracy or 0.0
    error = 100 * (share * (1 - share) / outcome.num_rows) ** 0.5
    return (
        f"{columns(lines)}\n\n"
        f"Accuracy: labels of {outcome.rows}, which nothing was chosen on; seed {seed}; standard error {error:.1f} "
        f"points.\n"
        f"Speed-up: the static and the dynamic net in turn on those images, {threads()}, torch {torch.__version__}. "
        f"Milliseconds a batch: the static net's mean over the nets, and what the speed-up makes of it."
    )


def _line(chapter: Chapter, static_ms: Sequence[float]) -> tuple[str, ...]:
    """Milliseconds by the speed-up: each net was timed beside the static one, but not beside the others."""
    outcome = chapter.outcome
    lost = points((outcome.static_accuracy or 0.0) - (outcome.accuracy or 0.0))
    pairs = zip(static_ms, chapter.timings, strict=True)
    times = [cell for ms, t in pairs for cell in (f"{ms / t.speedup:.2f}", f"{t.speedup:.2f}x")]
    return (chapter.title, f"{outcome.accuracy:.2%}", lost, macs(outcome.macs), f"{outcome.saved:.1%}", *times)
