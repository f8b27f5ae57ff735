"""``dynext meta-train``: a net from which each exit learns new classes from a few images."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import torch

from dynext.cli.shared.classes import KINDS, SPLIT, class_rows, episode_options, episodes_of, split_rows
from dynext.cli.shared.folder import write_folder
from dynext.cli.shared.options import (
    Places,
    device_option,
    json_option,
    model_options,
    open_given,
    output_option,
    seed_option,
    strict_option,
)
from dynext.cli.shared.show import columns, print_json
from dynext.cli.shared.work import forget_work, forgets_refused, work_folder
from dynext.fitting import FitConfig
from dynext.graph.split import split as cut
from dynext.io.artifact import PAGE
from dynext.meta.exit_ownership import ownership
from dynext.meta.few_shot import FewShot, evaluate_episodes
from dynext.meta.inner import NAMED, InnerLoop
from dynext.meta.new_classes import recipe_with_classes, with_classes
from dynext.meta.start import FILE, MetaStart
from dynext.meta.train import meta_train as train
from dynext.models.catalog import Opened
from dynext.modules.exits import default_heads
from dynext.net.attach import attach
from dynext.policy.calibrate import calibrate
from dynext.policy.choose import choose
from dynext.policy.policy import Policy

CHECKED = 100
"""Episodes that thresholds are chosen on."""


@click.command("meta-train", short_help="Train a net whose exits learn from a few images.")
@model_options
@output_option("-o", "--output", required=True, help="Where to put it.")
@click.option("--data", default="digits", show_default=True, metavar="DATA", help=KINDS)
@click.option("--root", type=click.Path(exists=True, path_type=Path), help="Where the data set lies.")
@click.option("--download", is_flag=True, help="Fetch it if it is nowhere.")
@strict_option
@click.option(
    "--classes", metavar="A/B", help="Train on A classes, keep B others apart for dynext evaluate --episodes."
)
@click.option("--after", type=Places(), help="Where exits stand: layer names or shares of the MACs; else automatic.")
@click.option(
    "--method", type=click.Choice(list(NAMED)), default="heads", show_default=True, help="How tasks are learned."
)
@click.option("--inner-steps", type=click.IntRange(min=1), default=3, show_default=True, help="Steps of a task.")
@click.option(
    "--inner-lr", type=click.FloatRange(min=0, min_open=True), default=0.1, show_default=True, help="Their size."
)
@click.option("--steps", type=click.IntRange(min=0), default=1000, show_default=True, help="Outer steps.")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), default=1e-3, show_default=True, help="Their size.")
@click.option("--batch", type=click.IntRange(min=1), default=4, show_default=True, help="Episodes of an outer step.")
@episode_options
@seed_option
@device_option
@json_option
@forgets_refused
def meta_train(
    model: str,
    output: Path,
    data: str,
    root: Path | None,
    download: bool,
    strict: bool,
    classes: str | None,
    after: tuple[str, ...] | tuple[float, ...] | None,
    method: str,
    inner_steps: int,
    inner_lr: float,
    steps: int,
    lr: float,
    batch: int,
    seed: int,
    device: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Meta-train MODEL on episodes of DATA and save it in DIR: new classes from a few images, at every exit.

    Every exit is a task of each episode (all in one where tasks adapt the trunk as well); what it owns, shares and
    adapts is printed first. Thresholds are chosen on episodes of the classes trained on; dynext evaluate DIR --episodes
    judges on others. A run that was interrupted goes on when the same command is run again.

    \b
    Example: dynext meta-train cifar:resnet8 --shape 1x8x8 --argument channels=1 --classes 6/4 --way 3 -o digits
    """
    shaped = {key: given.pop(key) for key in ("way", "shot", "queries")}
    opened = open_given(model, **given)
    rows = class_rows(data, opened.spec, root=root, download=download, strict=strict)
    taught, _ = split_rows(rows, classes, seed)
    episodes = episodes_of(taught, shaped, seed)
    staged = cut(opened.model, torch.zeros(1, *opened.spec.shape), after=after)
    net = with_classes(attach(staged, default_heads(opened.num_classes), seed=seed), episodes.way, seed=seed)
    changes = {} if method == "prototypes" else {"steps": inner_steps, "lr": inner_lr}
    inner = InnerLoop.of(method, **changes)
    exits = [range(net.num_exits)] if inner.adapts == "used" else None  # as the start will be adapted: one trunk
    if not as_json:
        click.echo(f"{ownership(net, exits, adapts=inner.adapts)}\n")
    asked: dict[str, Any] = {
        "inner": asdict(inner), "steps": steps, "lr": lr, "batch": batch, "seed": seed, **shaped,
        "spec": asdict(opened.spec),
    }  # fmt: skip
    checkpoint = work_folder(output, net, taught, asked) / "meta.ckpt"
    config = FitConfig(steps=steps, lr=lr, seed=seed, accelerator=device, checkpoint=checkpoint)
    start = train(net, episodes, config, inner=inner, exits=exits, batch=batch)
    seen = evaluate_episodes(start, episodes, count=CHECKED)
    policy = choose(seen.table, temperature=calibrate(seen.table))
    provenance = {"model": model, "data": data, "method": method, **asked, SPLIT: classes}
    del provenance["spec"]
    _save(output, start, seen, policy, opened, provenance)
    if as_json:
        accuracy_e = [(share.mean, share.half) for share in seen.accuracy_e]
        told = {"accuracy": accuracy_e, "policy": policy.to_dict(), "provenance": provenance}
        print_json({"folder": str(output), **told})
        return
    lines = [
        ("exit", "after", "right"),
        *((str(e), start.net.exit_names[e], str(s)) for e, s in enumerate(seen.accuracy_e)),
    ]
    click.echo(f"On {CHECKED} episodes of the classes that were trained on:\n{columns(lines, left=(1,))}")
    click.echo(f"\nSaved in {output}; open {output / PAGE} for the plots.")


def _save(
    output: Path, start: MetaStart, seen: FewShot, policy: Policy, opened: Opened, provenance: dict[str, Any]
) -> None:
    """The net as any other, and beside it how its inner loop goes on."""
    recipe = recipe_with_classes(opened.recipe, start.net.num_classes)
    write_folder(
        output,
        start.net,
        replace(opened, recipe=recipe or opened.recipe, class_names=None),
        policy=policy,
        table=seen.table,
        provenance=provenance,
        pictures={},
    )
    start.write(output / FILE)
    forget_work(output)
