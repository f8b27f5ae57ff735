"""Where an interrupted command keeps what it has done, and finds it again."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from dynext.data.samples import Samples
from dynext.zeroshot.synth.synthesize import fingerprint


def forget_work(output: Path) -> None:
    """What was kept for an interrupted run goes."""
    for leftover in output.absolute().parent.iterdir():
        if leftover.name.startswith(f".{output.name}.work-"):
            shutil.rmtree(leftover)


def work_folder(output: Path, teacher: nn.Module, seen: Samples | None, asked: dict[str, Any]) -> Path:
    """Where an interrupted run is found again: beside ``output``, one for each set of arguments, net and images."""
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    digest.update(fingerprint(teacher).encode())
    if seen is not None:
        digest.update(seen.pixels.numpy().tobytes())
    return output.absolute().with_name(f".{output.name}.work-{digest.hexdigest()[:8]}")
