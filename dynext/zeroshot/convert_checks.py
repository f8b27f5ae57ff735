"""What is asked of a conversion, looked at before the work begins: hours later is too late to hear of a mistake."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from dynext.atomic import check_writable, replaced_file
from dynext.data.content import Content
from dynext.data.indexing import check_samples
from dynext.data.samples import Samples
from dynext.errors import FitError, PolicyError, SourceError, line
from dynext.fitting import check_same_run
from dynext.graph.teacher import plain_classifier
from dynext.modules.exits import Exit
from dynext.net.dynamic_net import DynamicNet
from dynext.types import Data, InputSpec, Source
from dynext.zeroshot.bank import Bank
from dynext.zeroshot.given_samples import given_samples
from dynext.zeroshot.settings import Exits, Run, Synthesis, Target, Training, Unlabelled, training_name
from dynext.zeroshot.synth.last_layer import check_logits
from dynext.zeroshot.synth.method import Method
from dynext.zeroshot.synth.registry import chosen
from dynext.zeroshot.synth.synthesize import fingerprint, in_json

RECORD = "convert.json"
"""In the folder of a conversion: what it was asked for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ConversionTask:
    """A conversion that was looked at and makes sense."""

    teacher: nn.Module
    spec: InputSpec
    spec_known: bool
    """Whether somebody said how pixels are normalized; it is a guess otherwise."""
    exits: Exits
    synthesis: Synthesis | Source
    calibrate: Unlabelled | None
    training: Training
    target: Target
    run: Run

    @property
    def given(self) -> Source | None:
        """Samples that were given to distil on; ``None`` where some are to be synthesized."""
        return None if isinstance(self.synthesis, Synthesis) else self.synthesis

    @property
    def method(self) -> Method:
        """How samples are synthesized that exits are judged on: as those which they were distilled on."""
        return self.synthesis.method if isinstance(self.synthesis, Synthesis) else Synthesis().method

    @property
    def num_samples(self) -> int:
        """How many samples exits are distilled on, without calibration images."""
        return self.synthesis.n if isinstance(self.synthesis, Synthesis) else len(self.synthesis)

    def checkpoint(self, name: str) -> Path | None:
        """Where the state of one part of the training is kept."""
        return None if self.run.folder is None else self.run.folder / f"{name}.ckpt"

    def record(self) -> dict[str, Any]:
        """The settings as JSON: `dataclasses.asdict`, with digests in place of samples and heads."""
        images, wanted = self.calibrate, self.synthesis
        return {
            "exits": {"after": self.exits.after},
            "synthesis": in_json(wanted) if isinstance(wanted, Synthesis) else {"samples": identified(wanted)},
            "calibrate": None
            if images is None
            else {"samples": identified(images.samples), "distill": images.distill, "views": images.views},
            "training": {"kind": training_name(self.training), **asdict(self.training)},
            "target": asdict(self.target),
            "run": {"seed": self.run.seed, "minutes": self.run.minutes},
        }


def checked(
    teacher: nn.Module,
    example: Tensor | InputSpec | None,
    calibrate: Data | Unlabelled | None,
    exits: Exits,
    synthesis: Synthesis | Data,
    training: Training,
    target: Target,
    run: Run,
) -> ConversionTask:
    """The arguments of `dynext.convert` as a task.

    Raises:
        SourceError: samples that are none, of another shape, or normalized otherwise; or a teacher without logits.
        FitError: a training that is none.
        DiskError: the run's folder cannot be written, or has no room for the samples.
    """
    images, synthesis = given_samples(teacher, example, calibrate, synthesis)
    given = None if isinstance(synthesis, Synthesis) else synthesis
    if not isinstance(training, get_args(Training)):
        raise FitError(f"training={training!r}; give dx.Frozen(), dx.Joint() or dx.Skip()")
    if isinstance(synthesis, Synthesis):
        chosen(synthesis.method)  # or say now that there is no such method
    samples = {"calibrate": None if images is None else images.samples, "synthesis": given}
    spec = spec_for(example, *samples.values())
    for name, source in samples.items():
        if source is not None:
            _check_given(source, spec, name)
    if images is not None and given is not None:
        _check_apart(images.samples, given)
    teacher = plain_classifier(teacher, torch.zeros(1, *spec.shape))
    check_logits(teacher, spec)
    if run.folder is not None:
        check_writable(run.folder, _bank_bytes(synthesis, spec))
    return ConversionTask(
        teacher=teacher,
        spec=spec,
        spec_known=isinstance(example, InputSpec) or any(map(_tells_spec, samples.values())),
        exits=exits,
        synthesis=synthesis,
        calibrate=None if images is None else replace(images, samples=images.samples.unlabelled()),
        training=training,
        target=target,
        run=run,
    )


def _tells_spec(source: Source | None) -> bool:
    """Whether real samples say how they are normalized; a bank repeats what was guessed for it."""
    return source is not None and source.bn == "running" and isinstance(getattr(source, "spec", None), InputSpec)


def _bank_bytes(synthesis: Synthesis | Source, spec: InputSpec) -> int:
    """What the samples to be synthesized take on disk, two bytes a pixel."""
    return 2 * synthesis.n * math.prod(spec.shape) if isinstance(synthesis, Synthesis) else 0


def _check_apart(calibrate: Samples, given: Source) -> None:
    """Raises SourceError: samples to choose thresholds on that exits are to learn from as well, in any order."""
    known = int(Content.of(given).known_of(calibrate).sum())
    if known:
        raise SourceError(
            f"{known:,} of the {len(calibrate):,} samples of calibrate are among those to distil on, where exits agree "
            f"more than elsewhere; give others, or leave them out of synthesis and give dx.Unlabelled(samples, "
            f"distill=True), which judges each by exits that have not seen it"
        )


def spec_for(example: Tensor | InputSpec | None, *samples: Source | None) -> InputSpec:
    """The input spec that the example and the given samples agree on.

    Without one among them it is mean .5 and deviation .25 for the example's channels.

    Raises:
        SourceError: nothing says what the model expects, or the example is no batch of images.
    """
    own = [spec for one in samples if isinstance(spec := getattr(one, "spec", None), InputSpec)]
    if isinstance(example, InputSpec) or example is None:
        spec = example or (own[0] if own else None)
        if spec is None:
            raise SourceError("give an example batch or a dx.InputSpec; a model does not say what shape it expects")
        if len(spec.shape) != 3:
            raise SourceError(
                f"the spec is for samples of shape {spec.shape}; give (channels, height, width) (vectors of d numbers "
                f"can be (d, 1, 1), with an nn.Flatten in front of the net)"
            )
        return spec
    if not isinstance(example, Tensor) or example.ndim != 4:
        is_given = f"of shape {tuple(example.shape)}" if isinstance(example, Tensor) else f"a {type(example).__name__}"
        raise SourceError(
            f"the example is {is_given}; give a batch of samples as a tensor [b c h w], one sample is enough"
        )
    shape = tuple(example.shape[1:])
    if own:
        if own[0].shape != shape:
            raise SourceError(f"the example has samples {shape}, those given are {own[0].shape}; they must agree")
        return own[0]
    return InputSpec(shape=shape, mean=(0.5,) * shape[0], std=(0.25,) * shape[0])


def _check_given(source: Source, spec: InputSpec, name: str) -> None:
    """That samples a conversion was given are some, of this shape, and normalized as ``spec`` says."""
    check_samples(source, spec.shape, name=name)
    if isinstance(source, Samples) and (source.spec.mean, source.spec.std) != (spec.mean, spec.std):
        raise SourceError(
            f"{name} is normalized by mean {source.spec.mean}, std {source.spec.std}, the spec says {spec.mean}, "
            f"{spec.std}; give the samples the net's own spec: dataclasses.replace(samples, spec=spec)"
        )


def check_reach(task: ConversionTask, net: DynamicNet) -> None:
    """Raises PolicyError for a budget that is not met even if all samples leave at the cheapest exit."""
    budget = task.target.budget
    costs = [trunk + head for trunk, head in zip(net.trunk_macs_e, net.head_macs_e, strict=True)]
    least = min(costs) / max(net.trunk_macs_e[-1], 1)
    if budget is not None and budget < least:
        raise PolicyError(
            f"budget {budget} of the static net's MACs cannot be met: the cheapest within reach is {least:.3f}; allow "
            f"at least that, or attach earlier or cheaper exits"
        )


def check_record(task: ConversionTask, net: DynamicNet) -> None:
    """Keep in the run's folder what a conversion was asked for; one that was interrupted there must have asked the
    same.

    What may be lost or spent is not part of it: it plays no part until all is trained.

    Raises:
        FitError: it asked for something else, which is named; its exits would be taken for this one's.
        SourceError: the record is damaged.
    """
    if task.run.folder is None:
        return
    path = task.run.folder / RECORD
    wanted = json.loads(json.dumps(_identity(task, net)))
    if path.exists():
        try:
            kept = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise SourceError(f"{path} is damaged ({line(error)}); delete {path.parent} and convert anew") from error
        check_same_run(kept, wanted, str(path.parent))
        return
    with replaced_file(path) as partial:
        partial.write_text(json.dumps(wanted, indent=1) + "\n")


def _identity(task: ConversionTask, net: DynamicNet) -> dict[str, Any]:
    """One key for each thing that may differ, so that an error can name it."""
    record = task.record()
    flat = {
        f"{part}.{name}": value
        for part in ("synthesis", "calibrate", "training", "run")
        for name, value in (record[part] or {}).items()
    }
    if task.run.minutes is not None:  # these are planned
        for name in ("synthesis.n", *(key for key in flat if key.endswith("steps"))):
            flat.pop(name, None)
    heads = digest_of([_head_identity(exit) for exit in net.exits])
    known = {"teacher": fingerprint(task.teacher), "spec": asdict(task.spec), "exits": net.exit_names, "heads": heads}
    return {**known, **flat}


def _head_identity(exit: Exit) -> Any:
    """A head's JSON, which says all of heads of ours; of one's own also the sizes of its tensors and its layers."""
    if exit.own is None:
        return exit.spec
    return [exit.spec, {name: list(tensor.shape) for name, tensor in exit.state_dict().items()}, str(exit)]


def digest_of(value: Any) -> str:
    """Eight hexadecimal digits of something in JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def identified(samples: Source) -> Any:
    """Samples as the record tells of them: a bank by its provenance, pixels by a digest, others by their number."""
    if isinstance(samples, Bank):
        return samples.provenance.identity()
    if isinstance(samples, Samples):
        return {"rows": len(samples), "pixels": pixels_digest(samples), "spec": asdict(samples.spec)}
    return {"rows": len(samples)}


def pixels_digest(samples: Samples) -> str:
    """Twelve hexadecimal digits that the same images in the same order have again."""
    return hashlib.sha256(samples.pixels.contiguous().cpu().numpy().tobytes()).hexdigest()[:12]
