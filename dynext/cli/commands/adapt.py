"""``dynext adapt``: the dynamic net learns the classes of a folder with a few images of each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click

from dynext.cli.shared.classes import class_folder
from dynext.cli.shared.folder import write_folder
from dynext.cli.shared.options import (
    artifact_options,
    classes_of,
    device_option,
    json_option,
    open_artifact,
    output_option,
    seed_option,
    strict_option,
)
from dynext.cli.shared.show import print_json
from dynext.errors import SourceError
from dynext.io.artifact import PAGE, Artifact, save
from dynext.meta.adapt_config import Classifiers, Method
from dynext.meta.adaptation import Adaptation
from dynext.meta.adaptation import adapt as learn
from dynext.meta.new_classes import recipe_with_classes
from dynext.meta.start import FILE, MetaStart
from dynext.net.collect import collect
from dynext.net.dynamic_net import DynamicNet
from dynext.reporting.report import report


@click.command(short_help="Learn new classes from a few images of each.")
@artifact_options
@click.option(
    "--support", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER",
    help="Images to learn from, a sub-folder a class.",
)  # fmt: skip
@click.option(
    "--query", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER",
    help="Others of the same classes, to judge by.",
)  # fmt: skip
@output_option("-o", "--output", help="Where to put the adapted net; else it is only reported on.")
@click.option(
    "--steps", type=click.IntRange(min=0),
    help="Gradient steps.  [default: as meta-trained, else 3 with a --method that takes some]",
)  # fmt: skip
@click.option("--method", type=click.Choice(get_args(Method)), help="What is changed.  [default: as meta-trained]")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="Size of a step.  [default: as meta-trained]")
@click.option(
    "--classifiers", type=click.Choice(get_args(Classifiers)),
    help="Start from class means, or from the net's own classifiers.",
)  # fmt: skip
@click.option("--max-drop", type=click.FloatRange(0, 1), default=0.02, show_default=True, help="Accuracy to lose.")
@strict_option
@click.option("--keep-thresholds", is_flag=True, help="Keep the saved ones: for one image a class.")
@seed_option
@device_option
@json_option
def adapt(
    folder: Path,
    model: str | None,
    arguments: tuple[tuple[str, Any], ...],
    trust: bool,
    support: Path,
    query: Path | None,
    output: Path | None,
    steps: int | None,
    method: Method | None,
    lr: float | None,
    classifiers: Classifiers | None,
    max_drop: float,
    strict: bool,
    keep_thresholds: bool,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Teach the dynamic net in DIR the classes of a folder, a few images of each, at every exit.

    The net in DIR stays as it is. Thresholds and temperatures are chosen on the images themselves, each answered by
    exits that had not seen it. A net of dynext meta-train goes on as it was trained to; any other gets class means as
    its classifiers.

    \b
    Example: dynext adapt fashion --support shoes/known --query shoes/new -o shoes
    """
    kept = open_artifact(folder, model, arguments, trust=trust)
    net: DynamicNet | MetaStart = kept.net.to(device)
    if (folder / FILE).exists():
        net = MetaStart.read(folder / FILE, kept.net)
    known = classes_of(kept, None) if classifiers == "kept" else None
    rows, names = class_folder(support, kept.spec, known, strict=strict)
    adaptation = learn(
        net, rows, steps=steps, method=method, lr=lr, classifiers=classifiers, max_drop=max_drop, seed=seed,
        policy=kept.policy if keep_thresholds else None,
    )  # fmt: skip
    if adaptation.net.num_classes != len(names):
        raise SourceError(
            f"{len(names)} classes in {support}, the classifiers that are kept know {adaptation.net.num_classes}; "
            f"give images of as many classes, or --classifiers prototypes"
        )
    judged = None
    if query is not None:
        others, _ = class_folder(query, kept.spec, names, strict=strict)
        judged = report(collect(adaptation.net, others, rows=f"{len(others):,} images of {query}"), adaptation.policy)
    if output is not None:
        _save(output, adaptation, kept, names, {"support": len(rows), "steps": steps, "method": method, "seed": seed})
    learned = None if adaptation.table is None else report(adaptation.table, adaptation.policy)
    if as_json:
        told = {"classes": names, "policy": adaptation.policy.to_dict()}
        reports = {"support": learned and learned.to_dict(), "query": judged and judged.to_dict()}
        print_json({**told, **reports, "folder": None if output is None else str(output)})
        return
    click.echo(f"{len(names)} classes: {', '.join(names)}\n")
    for part in (learned, judged):
        if part is not None:
            click.echo(f"{part}\n")
    if output is not None:
        click.echo(f"Saved in {output}" + (f"; open {output / PAGE} for the plots." if adaptation.table else "."))


def _save(output: Path, adaptation: Adaptation, kept: Artifact, names: tuple[str, ...], told: dict[str, Any]) -> None:
    recipe = recipe_with_classes(kept.model_recipe, adaptation.net.num_classes) or kept.model_recipe
    provenance = {**{k: v for k, v in kept.provenance.items() if k not in ("timing", "timed_on")}, "adapted": told}
    net = adaptation.net.cpu()
    if adaptation.table is None:
        save(net, output, policy=adaptation.policy, spec=kept.spec, model_recipe=recipe, class_names=names,
             provenance=provenance)  # fmt: skip
        (output / FILE).unlink(missing_ok=True)  # another net's, where there was one
        return
    write_folder(
        output,
        net,
        replace(kept, model_recipe=recipe, class_names=names),
        policy=adaptation.policy,
        table=adaptation.table,
        provenance=provenance,
        pictures={},
    )
