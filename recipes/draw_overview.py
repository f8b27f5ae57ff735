"""The picture at the top of the README: stages, exits, and which images leave where.

Run `python recipes/draw_overview.py folder=DIR` on the folder of a converted net; the bundled test images are sent
through it, and each is drawn above the exit at which it left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import dynext as dx
from dynext.recipe import recipe_cli

BLUE, ORANGE, INK, PALE = "#3b6ea5", "#d9822b", "#222222", "#e8eef5"


@dataclass(frozen=True, kw_only=True)
class Config:
    """A net that `dynext convert` has saved, and how many of the images that leave at an exit are drawn there."""

    folder: Path | None = Path("demo_report")
    """``None``: the bundled net with untrained exits, to see this run."""
    columns: int = 3
    lines: int = 5
    out: Path = Path("docs/overview.png")


PAPER = Config()
SMOKE = replace(PAPER, folder=None, out=Path("runs/overview.png"))


def main(config: Config) -> dict[str, object]:
    net, policy = _opened(config)
    test = dx.data.bundled_sample()[1]
    x = test.take(torch.arange(len(test))).x
    answer = net.run(x, policy)
    right_b = answer.logits.argmax(1) == test.y
    shares = [(answer.exit == e).double().mean().item() for e in range(net.num_exits)]
    figure = Figure(figsize=(11, 4.0), dpi=110)
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.axis("off")
    ends = [macs / net.staged.macs for macs in net.trunk_macs_e]
    places = [0.04 + 0.9 * end for end in ends]
    _draw_trunk(axes, places)
    for e, place in enumerate(places):
        if policy.enabled_e[e]:
            left = (answer.exit == e).nonzero()[:, 0]
            _draw_exit(axes, place, shares[e], float(right_b[left].double().mean()) if len(left) else None)
            _draw_images(figure, test.spec.pixels(x[left[: config.columns * config.lines]]), place, config)
    spent = answer.macs.double().mean().item() / net.staged.macs
    told = (
        f"{len(test):,} test images: {spent:.0%} of the static net's multiply-adds, {right_b.double().mean():.1%} right"
    )
    axes.text(0.02, 0.965, told, fontsize=12, color=INK, va="top", weight="bold")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(config.out)
    return {"picture": str(config.out), "leaves": shares, "spent": spent, "right": right_b.double().mean().item()}


def _opened(config: Config) -> tuple[dx.DynamicNet, dx.Policy]:
    if config.folder is not None:
        kept = dx.load(config.folder)
        return kept.net, kept.policy
    opened = dx.open_model("bundled:fashion_resnet20")
    net = dx.attach(dx.split(opened.model, torch.zeros(1, *opened.spec.shape)), dx.default_heads(10))
    return net, dx.Policy.always(net.num_exits, exit=1)


def _draw_trunk(axes: Axes, places: list[float]) -> None:
    """A box for each stage, as wide as what it costs."""
    for s, (begin, end) in enumerate(zip([0.04, *places], places, strict=False)):
        box = FancyBboxPatch((begin + 0.004, 0.1), end - begin - 0.008, 0.13, boxstyle="round,pad=0,rounding_size=0.01")
        box.set(facecolor=PALE, edgecolor=BLUE)
        axes.add_patch(box)
        axes.text((begin + end) / 2, 0.165, f"stage {s + 1}", ha="center", va="center", color=BLUE, fontsize=9)
    axes.text(0.04, 0.045, "every image enters here; a box is as wide as what the stage costs", color=INK, fontsize=9)


def _draw_exit(axes: Axes, place: float, share: float, right: float | None) -> None:
    arrow = FancyArrowPatch((place, 0.235), (place, 0.36), arrowstyle="-|>", mutation_scale=14, color=ORANGE, lw=2)
    axes.add_patch(arrow)
    told = f"{share:.0%} leave" if right is None else f"{share:.0%} leave,\n{right:.0%} right"
    axes.text(place + 0.008, 0.3, told, fontsize=9, color=INK, va="center")


def _draw_images(figure: Figure, pixels: torch.Tensor, place: float, config: Config) -> None:
    """Some of the images that leave at this exit, above it."""
    if not len(pixels):
        return
    side = pixels.shape[-1] + 1
    sheet = torch.ones(pixels.shape[1], config.lines * side, config.columns * side)
    for i, image in enumerate(pixels):
        top, left = side * (i // config.columns), side * (i % config.columns)
        sheet[:, top : top + side - 1, left : left + side - 1] = image
    width = 0.1
    inset = figure.add_axes((min(0.98 * place + 0.01 - width / 2, 0.995 - width), 0.37, width, 0.5), anchor="S")
    inset.imshow(sheet.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    inset.axis("off")


if __name__ == "__main__":
    recipe_cli(PAPER, SMOKE, main)
