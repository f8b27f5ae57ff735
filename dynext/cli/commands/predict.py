"""``dynext predict``: classes of image files, and how far each had to go."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from dynext.cli.shared.options import artifact_options, device_option, open_artifact, strict_option
from dynext.cli.shared.show import columns
from dynext.data.image_files import image_files
from dynext.data.image_pixels import read_images, unreadable
from dynext.data.samples import Samples
from dynext.errors import SourceError
from dynext.io.artifact import Artifact
from dynext.types import Prediction

AT_ONCE = 256
"""Images in memory."""

log = logging.getLogger("dynext")


@click.command(short_help="Classes of images, and how far each had to go.")
@artifact_options
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@strict_option
@device_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
def predict(
    folder: Path,
    model: str | None,
    arguments: tuple[tuple[str, Any], ...],
    trust: bool,
    images: tuple[Path, ...],
    strict: bool,
    device: str,
    as_json: bool,
) -> None:
    """Classify IMAGES with the dynamic net in DIR: class, confidence, the exit each left at, and its share of the MACs.

    IMAGES are files, or folders: all images in these are taken, those in their sub-folders too. Each is turned upright,
    resized and cropped to what the model expects; light objects on dark ground stay so, and the other way round.

    Files that cannot be read are skipped and named; with --json each has a line with its "error".

    \b
    Example: dynext predict fashion shoe.png coat.png
             dynext predict fashion photos --json
    """
    kept = open_artifact(folder, model, arguments, trust=trust)
    files = _files(images)
    failed: dict[int, str] = {}
    lines = [("image", "class", "confidence", "exit", "MACs")]
    kept.net.to(device)
    for start in range(0, len(files), AT_ONCE):
        for place, answer in enumerate(_batch(kept, files[start : start + AT_ONCE], strict, device), start):
            if "error" in answer:
                failed[place] = answer["error"]
            else:
                lines.append(_line(answer))
            if as_json:
                click.echo(json.dumps(answer))
    if len(failed) == len(files):
        raise SourceError(unreadable(failed, len(files)))
    if not as_json:
        click.echo(columns(lines, left=(0, 1, 3)))
    if failed:
        log.warning("%s", unreadable(failed, len(files)))


def _files(images: Sequence[Path]) -> list[Path]:
    """The given files, and all images in the given folders."""
    files: list[Path] = []
    for path in images:
        inside = image_files(path) if path.is_dir() else [path]
        if not inside:
            log.warning("no image in %s", path)
        files += inside
    if not files:
        raise SourceError(f"no image in {', '.join(map(str, images))}; name image files, or folders that hold some")
    return files


def _batch(kept: Artifact, files: Sequence[Path], strict: bool, device: str) -> Iterator[dict[str, Any]]:
    """An object for each of ``files``, in order: its class, or why it cannot be read."""
    pixels, failed = read_images(files, kept.spec, strict=strict, some=False)
    read = [file for i, file in enumerate(files) if i not in failed]
    answers: list[dict[str, Any]] = []
    for batch in Samples(pixels=pixels, spec=kept.spec):
        answers += _answers(kept, kept.net.run(batch.x.to(device), kept.policy), read[len(answers) :])
    waiting = iter(answers)
    for i, file in enumerate(files):
        yield {"image": str(file), "error": failed[i]} if i in failed else next(waiting)


def _line(answer: dict[str, Any]) -> tuple[str, str, str, str, str]:
    label = answer["class"] if answer["name"] is None else f"{answer['name']} ({answer['class']})"
    where = f"{answer['exit']} ({answer['after']})"
    return answer["image"], str(label), f"{answer['confidence']:.3f}", where, f"{answer['macs_share']:.0%}"


def _answers(kept: Artifact, prediction: Prediction, images: Sequence[Path]) -> list[dict[str, Any]]:
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
