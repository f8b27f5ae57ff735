"""What is asked of a conversion, looked at before the work begins: hours later is too late to hear of a mistake."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from dynext.atomic import replaced_file
from dynext.data.indexing import check_samples
from dynext.data.samples import Samples
from dynext.errors import PolicyError, SourceError, line
from dynext.fitting import check_same_run
from dynext.net.dynamic_net import DynamicNet
from dynext.types import InputSpec, Source
from dynext.zeroshot.bank import Bank

RECORD = "convert.json"
"""In the folder of a conversion: what it was asked for."""


def spec_for(example: Tensor | None, spec: InputSpec | None, *rows: Source | None) -> InputSpec:
    """The input spec that example, ``spec`` and the given samples agree on.

    Without ``spec`` it is that of the samples which have one; else mean .5 and deviation .25 for the example's
    channels.

    Raises:
        SourceError: nothing says what the model expects, the example is no batch, or two of them contradict each other.
    """
    known = [found for one in rows if isinstance(found := getattr(one, "spec", None), InputSpec)]
    if spec is None and known:
        spec = known[0]
    if example is None:
        if spec is None:
            raise SourceError(
                "give an example batch or spec=dx.InputSpec(...); a net does not say what shape it expects"
            )
        return spec
    if not isinstance(example, Tensor) or example.ndim != 4:
        given = f"of shape {tuple(example.shape)}" if isinstance(example, Tensor) else f"a {type(example).__name__}"
        raise SourceError(
            f"the example is {given}; give a batch of samples as a tensor [b c h w], one sample is enough"
        )
    shape = tuple(example.shape[1:])
    if spec is None:
        return InputSpec(shape=shape, mean=(0.5,) * shape[0], std=(0.25,) * shape[0])
    if shape != spec.shape:
        raise SourceError(f"the example has samples {shape}, spec says {spec.shape}; they must agree")
    return spec


def check_rows(spec: InputSpec, *, distill_on: Source | None, calibrate: Samples | None) -> None:
    """That the samples a conversion was given are samples, of this shape, and normalized as ``spec`` says.

    Raises:
        SourceError: which of them is not, and what to give.
    """
    if len(spec.shape) != 3:
        raise SourceError(
            f"spec is for samples of shape {spec.shape}; give (channels, height, width) (vectors of d numbers can be "
            f"(d, 1, 1), with an nn.Flatten in front of the net)"
        )
    if calibrate is not None and not isinstance(calibrate, Samples):
        raise SourceError(
            f"calibrate is a {type(calibrate).__name__}; give dx.data.Samples (dx.data.open_rows makes them of a "
            f"folder, a file or pixels)"
        )
    if distill_on is not None and not isinstance(distill_on, Source):
        raise SourceError(
            f"distill_on is a {type(distill_on).__name__}; give a bank (dx.synthesize, dx.Bank.open) or "
            f"dx.data.Samples (dx.data.open_rows makes them of a folder, a file or pixels)"
        )
    given: dict[str, Source | None] = {"calibrate": calibrate, "distill_on": distill_on}
    for name, rows in given.items():
        if rows is None:
            continue
        check_samples(rows, spec.shape, name=name)
        if isinstance(rows, Samples) and (rows.spec.mean, rows.spec.std) != (spec.mean, spec.std):
            raise SourceError(
                f"{name} is normalized by mean {rows.spec.mean}, std {rows.spec.std}, spec says {spec.mean}, "
                f"{spec.std}; give the samples the net's own spec: dataclasses.replace(samples, spec=spec)"
            )


def check_wishes(max_drop: float | None, budget: float | None) -> None:
    """Raises PolicyError for what `dx.choose` would refuse once all is distilled."""
    if max_drop is not None and not 0 <= max_drop <= 1:
        raise PolicyError(f"max_drop {max_drop}; give a share of the samples from 0 to 1, 0.01 for one point")
    if budget is not None and not 0 < budget < float("inf"):
        raise PolicyError(f"budget {budget}; give a positive share of the static net's MACs, 0.5 for half of them")


def check_reach(budget: float | None, net: DynamicNet) -> None:
    """Raises PolicyError for a budget that is not met even if all samples leave at the cheapest exit."""
    costs = [trunk + head for trunk, head in zip(net.trunk_macs_e, net.head_macs_e, strict=True)]
    least = min(costs) / max(net.trunk_macs_e[-1], 1)
    if budget is not None and budget < least:
        raise PolicyError(
            f"budget {budget} of the static net's MACs cannot be met: the cheapest within reach is {least:.3f}; allow "
            f"at least that, or attach earlier or cheaper exits"
        )


def check_record(folder: Path, asked: Mapping[str, Any]) -> None:
    """Keep in ``folder`` what a conversion was asked for; one that was interrupted there must have asked the same.

    Raises:
        FitError: it asked for something else, which is named; its exits would be taken for this one's.
        SourceError: the record is damaged.
    """
    path = folder / RECORD
    wanted = json.loads(json.dumps(asked))
    if path.exists():
        try:
            found = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise SourceError(f"{path} is damaged ({line(error)}); delete {folder} and convert anew") from error
        check_same_run(found, wanted, str(folder))
        return
    with replaced_file(path) as partial:
        partial.write_text(json.dumps(wanted, indent=1) + "\n")


def digest_of(value: Any) -> str:
    """Eight hexadecimal digits of something in JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def told_of(rows: Source | None) -> Any:
    """Samples as the record tells of them: a bank by its provenance, pixels by a digest, others by their number."""
    if isinstance(rows, Bank):
        return rows.provenance.identity()
    if isinstance(rows, Samples):
        return {"rows": len(rows), "pixels": pixels_digest(rows), "spec": asdict(rows.spec)}
    return None if rows is None else {"rows": len(rows)}


def pixels_digest(rows: Samples) -> str:
    """Twelve hexadecimal digits that the same images in the same order have again."""
    return hashlib.sha256(rows.pixels.contiguous().cpu().numpy().tobytes()).hexdigest()[:12]
