"""Pictures of a table and a policy, as SVG text that takes the color of the page around it.

Shape legend: n samples, e exits (the last is the full net), c channels, h height, w width.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dynext.errors import SourceError
from dynext.policy.calibrate import reliability
from dynext.policy.fronts.shared import shared_front
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable
from dynext.reporting.report import Report

if TYPE_CHECKING:  # matplotlib is imported when something is drawn: `import dynext` should not wait for it
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GRAY = "#3b7ddd", "#e8710a", "#2a9d63", "#8a8f98"
_INK = "#010203"  # stands for the text color of the page until the SVG is written


def front_svg(table: ExitTable, policy: Policy, report: Report) -> str:
    """Share right against MACs: the front over thresholds, every exit alone, the oracle, the static net, the policy."""
    fig, ax = _axes(6.4, 3.9)
    cost_p, right_p = shared_front(table, policy.confidence, policy.temperature_e)
    ax.step(cost_p, right_p, where="post", color=BLUE, label="best thresholds on these samples")
    trunk_e = table.trunk_macs_ne.double().mean(0).tolist()
    alone = [
        ((trunk + head) / max(table.static_macs, 1), line.right_of_all)
        for trunk, head, line in zip(trunk_e, table.head_macs_e, report.exits, strict=True)
    ]
    early = alone if table.skipped is not None else alone[:-1]
    ax.plot([cost for cost, _ in early], [right for _, right in early], "o", color=GRAY, label="one exit for all")
    ax.plot(1, float(table.full_right_n.double().mean()), "s", color=_INK, markersize=8, label="static net")
    ax.plot(1 - report.oracle_saved, report.oracle_right, "^", color=GREEN, markersize=9, label="oracle")
    ax.plot(1 - report.saved, report.right, "*", color=ORANGE, markersize=16, label="this policy")
    ax.set_xlabel("MACs per sample, share of the static net's")
    ax.set_ylabel(report.measure)
    _in_percent(ax.xaxis, decimals=0)
    _in_percent(ax.yaxis)
    ax.set_xlim(left=0)
    ax.legend(loc="lower right", frameon=False, labelcolor=_INK, fontsize=9)
    return _svg(fig, f"{report.measure} against MACs")


def histogram_svg(report: Report) -> str:
    """Share of the samples that leave at each exit; an exit that is off says so."""
    fig, ax = _axes(6.4, 2.6)
    place_e = range(len(report.exits))
    ax.bar(place_e, [line.leaving for line in report.exits], color=BLUE, width=0.7)
    for line in report.exits:
        ax.annotate(
            f"{line.leaving:.0%}" if line.on else "off",
            (line.exit, line.leaving),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=_INK if line.on else GRAY,
        )
    ax.set_xticks(place_e, [_short(f"{line.exit}: {line.after}") for line in report.exits], fontsize=8)
    if len(report.exits) > 6:
        ax.tick_params(axis="x", labelrotation=35)
    ax.set_ylabel("share of samples")
    ax.set_ylim(0, max(line.leaving for line in report.exits) * 1.15)
    _in_percent(ax.yaxis, decimals=0)
    return _svg(fig, "share of the samples that leave at each exit")


def reliability_svg(table: ExitTable, policy: Policy, report: Report, exit: int) -> str:
    """Share right against confidence of one exit, without its temperature (hollow) and with it."""
    fig, ax = _axes(2.7, 2.7)
    ax.plot([0, 1], [0, 1], ":", color=GRAY, linewidth=1)
    for temperature, style, color in ((1.0, "o--", ORANGE), (policy.temperature_e[exit], "o-", BLUE)):
        diagram = reliability(table, temperature, exit)
        filled_w = diagram.count_w > 0
        hollow = "none" if color == ORANGE else color
        ax.plot(
            diagram.confidence_w[filled_w].numpy(),
            diagram.right_w[filled_w].numpy(),
            style,
            color=color,
            markerfacecolor=hollow,
            markersize=4,
            linewidth=1.2,
            label=f"T = {temperature:.2f}",
        )
    ax.set_xlim(0, 1.02)
    ax.set_ylim(0, 1.02)
    ax.set_title(_short(f"exit {exit}: {report.exits[exit].after}", 30), fontsize=9, color=_INK)
    ax.set_xlabel("confidence", fontsize=8)
    ax.set_ylabel("right" if report.accuracy is not None else "agree", fontsize=8)
    ax.legend(loc="upper left", frameon=False, labelcolor=_INK, fontsize=8)
    return _svg(fig, f"reliability of exit {exit} before and after temperature scaling")


def sheet_png(pixels: Tensor, *, columns: int = 12, limit: int = 60) -> str:
    """Images ``[n c h w]`` in [0, 1], gray or color, side by side: a PNG as a ``data:`` address.

    Raises:
        SourceError: not such images.
    """
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or not len(pixels):
        raise SourceError(
            f"pictures of shape {list(pixels.shape)}; give [n, 1 or 3, height, width] with values in [0, 1]"
        )
    from torchvision.utils import make_grid  # only here: its import takes long

    shown = pixels[:limit].detach().cpu().float().nan_to_num(0).clamp(0, 1).expand(-1, 3, -1, -1)
    opaque = F.pad((shown * 255).round().byte(), (0, 0, 0, 0, 0, 1), value=255)  # transparent between the pictures
    gap = max(1, pixels.shape[2] // 16)
    sheet = make_grid(opaque, nrow=columns, padding=gap)
    sheet = sheet[:, gap:-gap, gap:-gap] if len(shown) > 1 else sheet  # one alone gets no border
    buffer = io.BytesIO()
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    fig = Figure(figsize=(width, height), layout="constrained")
    ax = fig.subplots()
    ax.grid(color=GRAY, alpha=0.25, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(_INK)
    ax.tick_params(colors=_INK, labelsize=8)
    ax.xaxis.label.set_color(_INK)
    ax.yaxis.label.set_color(_INK)
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    return fig, ax


def _in_percent(axis: Axis, decimals: int | None = None) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1, decimals=decimals))


def _svg(fig: Figure, described: str) -> str:
    """SVG for inlining: text stays text, the ink is the page's own color, the same picture gives the same bytes."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": described}):
        fig.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Title": described}
        )
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor").replace("<svg ", '<svg role="img" ', 1)


def _short(text: str, limit: int = 16) -> str:
    """Names of deep modules are told apart by their ends."""
    return text if len(text) <= limit else text[: limit // 3] + "…" + text[-(limit - limit // 3 - 1) :]
