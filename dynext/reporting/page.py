"""One self-contained HTML page about a dynamic net: tables, plots, pictures; nothing is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from dynext.atomic import replaced_file
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable
from dynext.reporting.plots import front_svg, histogram_svg, reliability_svg, sheet_png
from dynext.reporting.report import Report, cells

TEMPLATES = Environment(
    loader=PackageLoader("dynext.reporting"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


class ReportSection(NamedTuple):
    """One policy on one table, under a name; a plain tuple in this order does as well."""

    name: str
    table: ExitTable
    policy: Policy
    report: Report


def write_page(
    path: Path | str,
    *,
    title: str,
    reports: Sequence[ReportSection | tuple[str, ExitTable, Policy, Report]],
    pictures: Mapping[str, Tensor] | None = None,
    timing: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write the page to ``path``, atomically, and return it.

    Args:
        reports: what to show, one section each.
        pictures: contact sheets by caption: images ``[n c h w]`` in [0, 1], gray or color.
        timing: measured figures by name; mappings may nest.
        provenance: how the net came about, by name; mappings may nest.
    """
    path = Path(path)
    page = TEMPLATES.get_template("page.html").render(
        title=title,
        sections=[_section(ReportSection(*section)) for section in reports],
        pictures={caption: sheet_png(pixels) for caption, pixels in (pictures or {}).items()},
        timing=timing,
        provenance=provenance,
    )
    with replaced_file(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def _section(section: ReportSection) -> dict[str, Any]:
    """What the template of a section expects."""
    name, table, policy, report = section
    return {
        "name": name,
        "report": report,
        "cards": _cards(report),
        "lines": [(line.on, cells(line)) for line in report.exits],
        "front": front_svg(table, policy, report),
        "histogram": histogram_svg(report),
        "diagrams": [
            reliability_svg(table, policy, report, line.exit) for line in report.exits if line.ece is not None
        ],
    }


def _cards(report: Report) -> list[tuple[str, str]]:
    """The headline figures, each with what it means."""
    figures = [(f"{report.saved:.1%}", "of the MACs saved, heads counted")]
    if report.accuracy is not None and report.static_accuracy is not None:
        figures.append((f"{report.accuracy:.2%}", f"accuracy; the static net {report.static_accuracy:.2%}"))
    where = " on synthesized samples" if report.synthetic else ""
    figures.append((f"{report.agreement:.2%}", f"agreement with the full net{where}"))
    early = sum(line.leaving for line in report.exits[:-1])
    figures.append((f"{early:.1%}", "of the samples leave early"))
    if report.ms is not None and report.static_ms is not None:
        meaning = f"a sample by measured stage times; the static net {report.static_ms:.2f}"
        figures.append((f"{report.ms:.2f} ms", meaning))
    return figures
