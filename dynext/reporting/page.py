"""One self-contained HTML page about a dynamic net: tables, plots, pictures; nothing is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from dynext.atomic import replaced_file
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable
from dynext.reporting.plots import front_svg, histogram_svg, reliability_svg, sheet_png
from dynext.reporting.report import Report, cells


class Shown(NamedTuple):
    """One policy on one table, under a name; a plain tuple in this order does as well."""

    name: str
    table: ExitTable
    policy: Policy
    report: Report


_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5d646d; --line: #dfe2e6; --card: #f5f6f8; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #a2a9b2; --line: #343a42; --card: #1d2127; --page: #14171b; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { margin: .4rem 0; }
.soft { color: var(--soft); font-size: .9rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.card { background: var(--card); border-radius: .6rem; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .82rem; }
.wide { overflow-x: auto; overflow-wrap: normal; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
th:nth-child(2), td:nth-child(2) { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 5rem; }
tr.off { color: var(--soft); }
table.facts th { text-align: left; vertical-align: top; width: 30%; }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
svg { max-width: 100%; height: auto; display: block; }
svg text { font-family: inherit !important; }
.few { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .5rem; }
figure { margin: 1rem 0; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .3rem; }
img.sheet { width: 100%; max-width: 46rem; image-rendering: pixelated; }
"""


def write_page(
    path: Path | str,
    *,
    title: str,
    reports: Sequence[Shown | tuple[str, ExitTable, Policy, Report]],
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
    body = [f"<h1>{escape(title)}</h1>", *(_section(Shown(*shown)) for shown in reports)]
    if timing:
        body.append(f"<h2>Measured time</h2>{_facts(timing)}")
    if pictures:
        body.append("<h2>Inputs</h2>" + "".join(_sheet(caption, pixels) for caption, pixels in pictures.items()))
    if provenance:
        body.append(f"<h2>How it was made</h2>{_facts(provenance)}")
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )
    with replaced_file(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def _section(shown: Shown) -> str:
    _, table, policy, report = shown
    judged_e = [line.exit for line in report.exits if line.ece is not None]
    diagrams = "".join(reliability_svg(table, policy, report, e) for e in judged_e)
    judged = f"{report.rows} (n={report.num_rows:,}), judged by {report.measure} (basis: {report.basis})."
    front_says = (
        "The line is the best that one shared threshold reaches on these very samples, every set of exits tried; "
        "the oracle sends each sample to the cheapest exit that is right."
    )
    return "\n".join(
        [
            f"<h2>{escape(shown.name)}</h2>",
            f'<p class="soft">{escape(judged)}</p>',
            _cards(report),
            _table(report),
            f"<p>{escape(report.note)}</p>" if report.note else "",
            f"<h3>{escape(report.measure.capitalize())} against MACs</h3>",
            f"<figure>{front_svg(table, policy, report)}<figcaption>{front_says}</figcaption></figure>",
            f"<h3>Where samples leave</h3>\n<figure>{histogram_svg(report)}</figure>",
            "<h3>Is an exit as often right as it is sure?</h3>" if diagrams else "",
            f'<figure><div class="few">{diagrams}</div><figcaption>Dashed: without a temperature. Solid: with it. '
            f"On the dotted line an exit is as sure as it should be.</figcaption></figure>"
            if diagrams
            else "",
        ]
    )


def _cards(report: Report) -> str:
    shown = [(f"{report.saved:.1%}", "of the MACs saved, heads counted")]
    if report.accuracy is not None and report.static_accuracy is not None:
        shown.append((f"{report.accuracy:.2%}", f"accuracy; the static net {report.static_accuracy:.2%}"))
    where = " on synthesized samples" if report.synthetic else ""
    shown.append((f"{report.agreement:.2%}", f"agreement with the full net{where}"))
    early = sum(line.leaving for line in report.exits[:-1])
    shown.append((f"{early:.1%}", "of the samples leave early"))
    if report.ms is not None and report.static_ms is not None:
        shown.append(
            (f"{report.ms:.2f} ms", f"a sample by measured stage times; the static net {report.static_ms:.2f}")
        )
    return (
        '<div class="cards">'
        + "".join(f'<div class="card"><b>{b}</b><span>{s}</span></div>' for b, s in shown)
        + "</div>"
    )


def _table(report: Report) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in report.titles)
    lines = [
        f"<tr{'' if line.on else ' class=off'}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells(line))}</tr>"
        for line in report.exits
    ]
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _facts(facts: Mapping[str, Any]) -> str:
    cell_by_name = {
        str(name): _facts(value) if isinstance(value, Mapping) else escape(str(value)) for name, value in facts.items()
    }
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{cell}</td></tr>" for name, cell in cell_by_name.items())
    return f'<table class="facts"><tbody>{rows}</tbody></table>'


def _sheet(caption: str, pixels: Tensor) -> str:
    text = escape(caption)
    return f'<figure><img class="sheet" alt="{text}" src="{sheet_png(pixels)}"><figcaption>{text}</figcaption></figure>'
