"""How the commands print: tables in columns, figures in few words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click
import torch

from dynext.net.timing import Timing


def columns(lines: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> str:
    """Titles, a rule, then samples; the columns in ``left`` stand to the left, the others to the right."""
    widths = [max(len(line[c]) for line in lines) for c in range(len(lines[0]))]
    texts = [
        "  ".join(
            cell.ljust(w) if c in left else cell.rjust(w) for c, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([texts[0], "-" * max(map(len, texts)), *texts[1:]])


def macs(count: float) -> str:
    """``41.2 M``."""
    return f"{count / 1e9:,.2f} G" if count >= 1e9 else f"{count / 1e6:,.2f} M"


def points(difference: float) -> str:
    """A difference of shares in percentage points: ``0.85``."""
    return f"{100 * difference + 0.0:.2f}"  # no "-0.00"


def print_json(plain: Any) -> None:
    click.echo(json.dumps(plain, indent=2))


def timing_lines(timings: Sequence[Timing], rows: str) -> str:
    """Milliseconds per batch of both nets, side by side, and the ratio."""
    lines = [("batch", "static ms", "dynamic ms", "speed-up")]
    lines += [(str(t.batch), f"{t.static_ms:.2f}", f"{t.dynamic_ms:.2f}", f"{t.speedup:.2f}x") for t in timings]
    return f"Milliseconds a batch, both nets in turn, {threads()}, on {rows}:\n{columns(lines, left=())}"


def page_facts(provenance: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Provenance without the clocks, and the clocks, as the report's page shows them."""
    told = dict(provenance)
    timed_on, timings = told.pop("timed_on", "rows"), told.pop("timing", [])
    return told, {timed_on: {f"batch {timing['batch']}": timing for timing in timings}} if timings else {}


def threads() -> str:
    count = torch.get_num_threads()
    return "1 thread" if count == 1 else f"{count} threads"
