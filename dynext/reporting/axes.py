"""Share right against MACs on matplotlib axes of one's own: a table, a report, or several to compare."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dynext.errors import PolicyError
from dynext.policy.fronts.shared import shared_front
from dynext.policy.table import ExitTable
from dynext.reporting.plots import BLUE, GRAY, GREEN, ORANGE
from dynext.reporting.report import Report, measure_in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = (BLUE, ORANGE, GREEN, "#8e44ad", "#c0392b", "#16a085")


def plot(what: ExitTable | Report | Sequence[ExitTable | Report], ax: Axes | None = None) -> Axes:
    """Share right against MACs, as a share of the static net's: matplotlib axes in, axes out.

    Of a table: each exit alone, and the best thresholds on its samples (without temperatures). Of a report: its
    `Report.curve` and where its policy stands on it. Of several, each in its color, by what their samples are.

    Args:
        ax: where to draw; new ones of pyplot without it.

    Raises:
        PolicyError: neither a table nor a report, none of them, or reports without a table.
    """
    shown = [what] if isinstance(what, ExitTable | Report) else list(what)
    wrong = [type(one).__name__ for one in shown if not isinstance(one, ExitTable | Report)]
    if wrong or not shown:
        raise PolicyError(f"plot of {', '.join(wrong) or 'nothing'}; give a table, a report, or a list of them")
    if ax is None:
        from matplotlib import pyplot  # slow to import

        _, ax = pyplot.subplots()
    for one, color in zip(shown, cycle(COLORS), strict=False):
        label = one.rows if len(shown) > 1 else ""
        if isinstance(one, Report):
            _draw_report(ax, one, color, label)
        else:
            _draw_table(ax, one, color, label)
    measures = {one.measure if isinstance(one, Report) else measure_in_words(one.basis, one.synthetic) for one in shown}
    ax.set_xlabel("MACs per sample, share of the static net's")
    ax.set_ylabel(" or ".join(sorted(measures)))
    ax.legend()
    return ax


def _draw_report(ax: Axes, report: Report, color: str, label: str) -> None:
    ax.step(*zip(*report.curve, strict=True), where="post", color=color, label=label or "other thresholds")
    ax.plot(1 - report.saved, report.right, "*", color=color, markersize=14, label=f"{label} policy".strip())


def _draw_table(ax: Axes, table: ExitTable, color: str, label: str) -> None:
    cost_p, right_p = shared_front(table, "max_probability", (1.0,) * table.num_exits)
    ax.step(cost_p, right_p, where="post", color=color, label=label or "best thresholds")
    alone = table.trunk_macs_ne.double().mean(0) + _heads(table)
    right_e = table.right_ne.double().mean(0)
    ax.plot(
        alone / max(table.static_macs, 1), right_e, "o", color=color if label else GRAY, label=f"{label} exits".strip()
    )


def _heads(table: ExitTable) -> Tensor:
    return torch.tensor(table.head_macs_e)
