"""``dynext report``: the page with the plots, written anew."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Any

import click

from dynext.atomic import check_writable
from dynext.cli.shared.options import artifact_options, classes_of, data_options, open_artifact
from dynext.cli.shared.pictures import first_and_last, load_pictures
from dynext.cli.shared.samples import Watched, open_samples
from dynext.cli.shared.show import page_facts
from dynext.data.class_lists import ClassList
from dynext.errors import ArtifactError
from dynext.io.artifact import PAGE
from dynext.net.collect import collect
from dynext.reporting.page import write_page
from dynext.reporting.report import report as report_on


@click.command(short_help="Write the page with the plots anew.")
@artifact_options
@data_options(required=False)
@click.option("--open/--no-open", "show", default=False, help="Open the page in a browser.")
def report(
    folder: Path,
    model: str | None,
    arguments: tuple[tuple[str, Any], ...],
    trust: bool,
    data: str | None,
    root: Path | None,
    download: bool,
    listed: ClassList | None,
    strict: bool,
    show: bool,
) -> None:
    """Write DIR/report.html: one page with everything in it, plots and pictures too.

    It shows the samples that thresholds were chosen on; with --data, test samples before them.

    \b
    Example: dynext report fashion --data fashion-mnist --open
    """
    check_writable(folder)
    kept = open_artifact(folder, model, arguments, trust=trust)
    shown = []
    pictures = load_pictures(folder)
    if data is not None:
        classes = classes_of(kept, listed)
        rows, words = open_samples(data, kept.spec, root=root, download=download, classes=classes, strict=strict)
        table = collect(kept.net, Watched(rows=rows), keep=kept.policy.skip_rule, rows=words)
        shown.append(("Test samples", table, kept.policy, report_on(table, kept.policy)))
        pictures |= first_and_last(table, kept.policy, rows)
    if kept.table is not None:
        chosen_on = report_on(kept.table, kept.policy)
        shown.append(("The samples that thresholds were chosen on", kept.table, kept.policy, chosen_on))
    if not shown:
        raise ArtifactError(f"{folder} keeps no table to report on; give samples with --data")
    provenance, timing = page_facts(kept.provenance)
    page = write_page(
        folder / PAGE,
        title=f"{provenance.get('model', folder.name)}, made dynamic",
        reports=shown,
        pictures=pictures,
        timing=timing,
        provenance={**provenance, "versions": kept.versions},
    )
    click.echo(f"Wrote {page}")
    if show:
        webbrowser.open(page.absolute().as_uri())
