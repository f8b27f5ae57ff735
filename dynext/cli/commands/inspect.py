"""``dynext inspect``: the stages of a net, before anything is done to it."""

from __future__ import annotations

from typing import Any

import click
import torch

from dynext.cli.shared.options import Places, json_option, model_options, open_given
from dynext.cli.shared.show import macs, print_json
from dynext.graph.split import Granularity, split
from dynext.graph.stage import StagedNet
from dynext.models.catalog import Opened


@click.command(short_help="The stages of a net, and where exits would stand.")
@model_options
@click.option("--after", type=Places(), help="Cut here: layer names, or shares of the MACs such as 0.25,0.5.")
@click.option(
    "--granularity",
    type=click.Choice(["stage", "block"]),
    default="stage",
    show_default=True,
    help="block also makes each residual block a stage, which a sample may skip.",
)
@json_option
def inspect(
    model: str,
    after: tuple[str, ...] | tuple[float, ...] | None,
    granularity: Granularity,
    as_json: bool,
    **given: Any,
) -> None:
    """Show the stages MODEL falls into, what they cost, and where exits would stand.

    \b
    Example: dynext inspect torchvision:resnet18
             dynext inspect torchvision:resnet18 --granularity block
    """
    opened = open_given(model, **given)
    example = torch.zeros(1, *opened.spec.shape)
    staged = split(opened.model, example, after, granularity=granularity)
    plain = after is None and granularity == "stage"
    automatic = staged.cuts if plain else split(opened.model, example).cuts
    if as_json:
        print_json(_described(model, opened, staged, automatic))
        return
    size = "x".join(map(str, opened.spec.shape))
    weights = "" if opened.trained else ", random weights"
    click.echo(f"{model}{weights}: expects {size}, answers {opened.num_classes:,} classes")
    click.echo(f"{_parameters(opened):,} parameters, {macs(staged.macs)} MACs a sample\n")
    click.echo(staged.table())
    for note in staged.notes:
        click.echo(f"\nNote: {note}.")
    click.echo(f"\nExits of their own accord would stand after {', '.join(automatic)} (--after moves them).")


def _parameters(opened: Opened) -> int:
    return sum(p.numel() for p in opened.model.parameters())


def _described(model: str, opened: Opened, staged: StagedNet, automatic: tuple[str, ...]) -> dict[str, Any]:
    stages: list[Any] = list(staged.stages)
    return {
        "model": model,
        "trained": opened.trained,
        "shape": list(opened.spec.shape),
        "num_classes": opened.num_classes,
        "parameters": _parameters(opened),
        "macs": staged.macs,
        "granularity": staged.granularity,
        "notes": list(staged.notes),
        "automatic_exits": list(automatic),
        "stages": [
            {
                "ends_after": stage.name,
                "live_shapes": [list(shape) for shape in stage.live_shapes],
                "macs": stage.macs,
                "share": stage.macs / max(staged.macs, 1),
                "skippable": stage.skippable,
            }
            for stage in stages
        ],
    }
