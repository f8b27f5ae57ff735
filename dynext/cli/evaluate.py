"""``dynext evaluate``: what the dynamic net loses and saves on real rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dynext.cli.options import artefact_options, data_options, device_option, json_option, open_artefact
from dynext.cli.rows import Watched, open_rows
from dynext.cli.show import columns, points, print_json
from dynext.core.collect import collect
from dynext.core.policy import Policy
from dynext.core.report import Report, report
from dynext.core.search import choose
from dynext.core.table import ExitTable
from dynext.errors import PolicyError

BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@click.command(short_help="What the dynamic net loses and saves on test rows.")
@artefact_options
@data_options(required=True)
@device_option
@json_option
def evaluate(
    folder: Path,
    model: str | None,
    arguments: tuple[tuple[str, Any], ...],
    data: str,
    root: Path | None,
    download: bool,
    device: str,
    as_json: bool,
) -> None:
    """Judge the dynamic net in DIR on test rows: at its saved policy, and along budgets.

    With labels (a data set, a .npz with y, a folder with one sub-folder a class in the order of the net's classes) it
    tells accuracy; without, agreement with the full net. Thresholds are never chosen on the test rows.

    \b
    Example: dynext evaluate fashion --data fashion-mnist
    """
    kept = open_artefact(folder, model, arguments)
    rows, words = open_rows(data, kept.spec, root=root, download=download)
    table = collect(kept.net.to(device), Watched(rows=rows), rows=words)
    saved = report(table, kept.policy)
    along = [] if kept.table is None else _along_budgets(kept.table, kept.policy, table)
    if as_json:
        budgets = [{"budget": budget, "report": found.to_dict() if found else None} for budget, found in along]
        print_json({"folder": str(folder), "saved_policy": saved.to_dict(), "budgets": budgets})
        return
    click.echo(f"{saved}\n")
    if kept.table is None:
        click.echo("No budgets: the folder keeps no table to choose other thresholds on.")
        return
    click.echo(f"Along budgets, thresholds chosen on {kept.table.rows} (none of the rows above):")
    click.echo(columns([_titles(saved), *(_cells(budget, found, saved) for budget, found in along)], left=()))


def _along_budgets(chosen_on: ExitTable, policy: Policy, table: ExitTable) -> list[tuple[float, Report | None]]:
    """A report for each budget; none where no policy meets it."""
    found: list[tuple[float, Report | None]] = []
    for budget in BUDGETS:
        try:
            there = choose(chosen_on, budget=budget, temperature=policy.temperature_e, confidence=policy.confidence)
        except PolicyError:
            found.append((budget, None))
        else:
            found.append((budget, report(table, there)))
    return found


def _titles(saved: Report) -> tuple[str, ...]:
    return ("budget", "MACs", "saved", "agreement" if saved.accuracy is None else "accuracy", "points lost", "exits on")


def _cells(budget: float, found: Report | None, saved: Report) -> tuple[str, ...]:
    if found is None:
        return (f"{budget:.0%}", "-", "-", "-", "-", "not within reach")
    right, static = (found.agreement, 1.0) if found.accuracy is None else (found.accuracy, found.static_accuracy or 0.0)
    on = " ".join(str(line.exit) for line in found.exits if line.on)
    spent = found.macs / max(found.static_macs, 1)
    return (f"{budget:.0%}", f"{spent:.1%}", f"{found.saved:.1%}", f"{right:.2%}", points(static - right), on)
