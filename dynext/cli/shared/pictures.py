"""Contact sheets for the report: synthesized inputs, inputs that leave first and last. Kept beside the net."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dynext.atomic import replaced_file
from dynext.data.samples import Samples
from dynext.errors import ArtifactError
from dynext.policy.confidence import confidences
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable, simulate
from dynext.zeroshot.bank import Bank

NAME = "pictures.safetensors"
COUNT = 32
SHOWABLE = (1, 3)
"""Channels that a page can show."""
LARGEST = 64
"""Pixels a side that a picture is kept with at most."""


def synthesized(bank: Bank) -> dict[str, Tensor]:
    """Some of the samples that the exits were distilled on, ``[n c h w]`` in [0, 1]; nothing if they are no
    pictures.
    """
    if bank.shape[0] not in SHOWABLE:
        return {}
    return {f"Synthesized inputs ({bank.provenance.method}), made from the net alone": _small(bank.sheet(COUNT))}


def first_and_last(table: ExitTable, policy: Policy, rows: Samples) -> dict[str, Tensor]:
    """The samples of ``table``, given as ``rows``, that leave first (surest before), and those that leave last; nothing
    if they are no pictures.
    """
    if rows.shape[0] not in SHOWABLE:
        return {}
    exit_n = simulate(table, policy).exit_n
    conf_ne = confidences(table.logits_nek, policy.confidence, policy.temperature_e, policy.enabled_e)
    conf_n = conf_ne.gather(1, exit_n[:, None])[:, 0]
    order = (exit_n.double() - conf_n.double() / 2).argsort()
    pixels = rows.spec.pixels(rows.take(order).x)
    few = min(COUNT, len(order) // 2)
    return {
        "Inputs that leave first": _small(pixels[:few]),
        "Inputs that leave last": _small(pixels[-few:].flip(0)),
    } if few else {}  # fmt: skip


def save_pictures(folder: Path, pictures: Mapping[str, Tensor]) -> None:
    """Keep the sheets as 8-bit pixels, atomically, so that the report can be written again."""
    kept = {caption: (255 * sheet).round().byte().contiguous() for caption, sheet in pictures.items()}
    with replaced_file(folder / NAME) as partial:
        save_file(kept, partial)


def load_pictures(folder: Path) -> dict[str, Tensor]:
    """What `save_pictures` kept; nothing where there is no such file.

    Raises:
        ArtifactError: the file is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return {}
    try:
        return {caption: sheet.float() / 255 for caption, sheet in sorted(load_file(path).items())}
    except SafetensorError as error:
        raise ArtifactError(f"{path} is damaged ({error}); delete it, the report does without") from error


def _small(pixels: Tensor) -> Tensor:
    side = max(pixels.shape[2:])
    return torch.nn.functional.avg_pool2d(pixels, -(-side // LARGEST)) if side > LARGEST else pixels
