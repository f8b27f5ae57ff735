"""``dynext predict``: classes of image files, and how far each had to go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import torch

from dynext.cli.shared.options import artifact_options, device_option, open_artifact
from dynext.cli.shared.show import columns
from dynext.data.image_files import image
from dynext.data.samples import Samples
from dynext.io.artifact import Artifact
from dynext.types import Prediction


@click.command(short_help="Classes of images, and how far each had to go.")
@artifact_options
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@device_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
def predict(
    folder: Path,
    model: str | None,
    arguments: tuple[tuple[str, Any], ...],
    images: tuple[Path, ...],
    device: str,
    as_json: bool,
) -> None:
    """Classify IMAGES with the dynamic net in DIR: class, confidence, the exit each left at, and its share of the MACs.

    Images are resized and cropped to what the model expects; light objects on dark ground stay so, and the other way
    round.

    \b
    Example: dynext predict fashion shoe.png coat.png
    """
    kept = open_artifact(folder, model, arguments)
    rows = Samples(pixels=torch.stack([image(path, kept.spec) for path in images]), spec=kept.spec)
    net = kept.net.to(device)
    answers: list[dict[str, Any]] = []
    for batch in rows:
        answers += _answers(kept, net.run(batch.x.to(device), kept.policy), images[len(answers) :])
    if as_json:
        for answer in answers:
            click.echo(json.dumps(answer))
        return
    lines = [("image", "class", "confidence", "exit", "MACs")]
    for a in answers:
        label = a["class"] if a["name"] is None else f"{a['name']} ({a['class']})"
        where = f"{a['exit']} ({a['after']})"
        lines.append((a["image"], str(label), f"{a['confidence']:.3f}", where, f"{a['macs_share']:.0%}"))
    click.echo(columns(lines, left=(0, 1, 3)))


def _answers(kept: Artifact, prediction: Prediction, images: tuple[Path, ...]) -> list[dict[str, Any]]:
    """One object a sample: the confidence is the largest probability at the temperature of the exit it left at."""
    temperature_b = torch.tensor(kept.policy.temperature_e)[prediction.exit.cpu()]
    confidence_b, class_b = (prediction.logits.float().cpu() / temperature_b[:, None]).softmax(1).max(1)
    static = kept.net.trunk_macs_e[-1]
    answers = []
    columns_b = zip(
        images,
        class_b.tolist(),
        confidence_b.tolist(),
        prediction.exit.tolist(),
        prediction.macs.tolist(),
        strict=False,
    )
    for path, label, confidence, exit, macs in columns_b:
        answers.append(
            {
                "image": str(path),
                "class": label,
                "name": None if kept.class_names is None else kept.class_names[label],
                "confidence": confidence,
                "exit": exit,
                "after": kept.net.exit_names[exit],
                "macs": macs,
                "macs_share": macs / max(static, 1),
            }
        )
    return answers
