"""How many samples and steps a conversion can afford on this machine: a time budget, planned before the work starts."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from dynext.atomic import replaced_file
from dynext.errors import SourceError, line
from dynext.net.dynamic_net import DynamicNet
from dynext.net.features import cache_features
from dynext.seeding import generator
from dynext.types import InputSpec
from dynext.zeroshot.bank import Bank
from dynext.zeroshot.distill import distill
from dynext.zeroshot.settings import JOINT_STEPS, SAMPLES, STEPS
from dynext.zeroshot.synth.bn_statistics import in_full
from dynext.zeroshot.synth.generator_training import GeneratorSettings
from dynext.zeroshot.synth.method import Method, Work, samples_per_chunk
from dynext.zeroshot.synth.registry import chosen
from dynext.zeroshot.synth.synthesize import synthesize

LEAST, MOST = 1 / 32, 8.0
"""Of that: less is not worth having, more gives nothing."""

RESERVE = 0.85
"""Share of the budget that is planned with; clocks of a busy machine vary."""

SCREENED_SAMPLES = 2048
"""Samples that pass the teacher before samples for thresholds are painted (`fitted`'s choice of styles), roughly."""

PROBE_STEPS = 8

JOINT_FORWARDS = 4 * 64
"""Samples that a step of joint distillation runs forward, backward passes counted as two: student and teacher."""


JUDGED_FORWARDS, DRIFT_FORWARDS, RULE_FORWARDS = 1.25, 2.0, 2.0
"""Passes of a sample that thresholds are chosen on: one for the table and a quarter for the BatchNorm distance; what a
trained trunk has lost; each skip rule that is tried."""


TRIED = 64
"""Made to find out; few, since an inverted sample takes a large part of a second on a large net."""

TRIED_STEPS = 8
"""Of a generator's training that are tried; the rest is expected to take as long a step."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds until the first sample, and for each."""

    ready: float
    sample: float


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Seconds on this machine: what samples to distil on take, to paint one, to run it through the net, and for one
    distillation step."""

    make: Pace
    paint: float
    forward: float
    step: float


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Samples to synthesize, distillation steps, and the seconds they are expected to take."""

    rows: int
    steps: int
    joint_steps: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What there is to do beside synthesizing samples, running them through the net once and distilling once."""

    given: int | None = None
    """Samples to distil on that are there already; ``None`` where they are to be synthesized."""
    trainings: float = 1.0
    """How often the steps are done over (folds, for instance)."""
    joint: bool = False
    """Whether the trunk is trained, too."""
    further: int = 0
    """Samples that pass the net once whatever is planned: calibration samples with all their views."""
    judged: int = 0
    """Samples that are synthesized whatever is planned, for thresholds."""
    judged_forwards: float = JUDGED_FORWARDS
    """How often these pass the net."""


def planned(minutes: float, speeds: Speeds, work: Workload = Workload()) -> Effort:
    """The largest effort within ``minutes``, samples and steps in their usual proportion.

    Raises:
        SourceError: fewer minutes than even the least effort takes, or no number of them.
    """
    if not 0 < minutes < math.inf:
        raise SourceError(f"minutes={minutes}; give a positive number")
    screened = SCREENED_SAMPLES if work.judged else 0
    passes = screened + work.further + (work.given or 0) + work.judged_forwards * work.judged
    fixed = passes * speeds.forward + work.judged * speeds.paint
    usual = work.trainings * STEPS * speeds.step + (
        JOINT_STEPS * JOINT_FORWARDS * speeds.forward if work.joint else 0.0
    )
    if work.given is None:
        fixed += speeds.make.ready
        usual += SAMPLES * (speeds.make.sample + speeds.forward)
    share = (RESERVE * 60 * minutes - fixed) / usual
    if share < LEAST:
        needed = (fixed + LEAST * usual) / RESERVE / 60
        raise SourceError(f"{minutes:g} minutes are too few for this net on this machine; give {needed:.2g} or more")
    share = min(share, MOST)
    return Effort(
        rows=int(share * SAMPLES) if work.given is None else work.given,
        steps=int(share * STEPS),
        joint_steps=int(share * JOINT_STEPS),
        seconds=fixed + share * usual,
    )


def measured_speeds(net: DynamicNet, teacher: nn.Module, spec: InputSpec, method: Method) -> Speeds:
    """What samples by ``method``, painting, the net and a distillation step take here and now; nothing is changed."""
    count = samples_per_chunk(spec.shape)
    bank: list[Bank] = []
    paint = _seconds(lambda: bank.append(_painted(teacher, spec, count)))
    forward = _seconds(lambda: cache_features(net, None, bank[0], progress=False))
    features = cache_features(net, None, bank[0], progress=False)
    step = _seconds(lambda: distill(net, None, features, steps=PROBE_STEPS, progress=False))
    made = pace(in_full(teacher), spec, method)
    return Speeds(make=made, paint=paint / count, forward=forward / count, step=step / PROBE_STEPS)


def effort_for(
    minutes: float,
    net: DynamicNet,
    teacher: nn.Module,
    spec: InputSpec,
    method: Method,
    work: Workload = Workload(),
    *,
    folder: Path | None = None,
) -> Effort:
    """`planned` from `measured_speeds`; a run that is resumed in ``folder`` goes on with the plan it began with.

    Raises:
        SourceError: as `planned`; or the plan in ``folder`` is damaged.
    """
    path = None if folder is None else folder / "effort.json"
    if path is not None and path.exists():
        try:
            return Effort(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise SourceError(f"{path} is damaged ({line(error)}); delete it to plan anew") from error
    effort = planned(minutes, measured_speeds(net, teacher, spec, method), work)
    if path is not None:
        with replaced_file(path) as partial:
            partial.write_text(json.dumps(asdict(effort)))
    return effort


def pace(teacher: nn.Module, spec: InputSpec, method: Method) -> Pace:
    """What ``method``, with its own defaults, takes here and now; the samples are thrown away."""
    options, longer = _shortened(method)
    began = time.monotonic()
    sampler = chosen(method).make(teacher, spec, 0, **options).prepare(Work(progress=False))
    ready = longer * (time.monotonic() - began)
    count = min(TRIED, samples_per_chunk(spec.shape))
    began = time.monotonic()
    sampler.sample(count, generator(0))
    return Pace(ready=ready, sample=(time.monotonic() - began) / count)


def _shortened(method: Method) -> tuple[dict[str, Any], float]:
    """Options with which getting ready is tried, and how many times as long it really takes."""
    if method != "generator":
        return {}, 1.0
    usual = GeneratorSettings()
    return {"settings": replace(usual, steps=TRIED_STEPS)}, usual.steps / TRIED_STEPS


def _painted(teacher: nn.Module, spec: InputSpec, count: int) -> Bank:
    return synthesize(teacher, shape=spec.shape, n=count, seed=0, method="leaves", spec=spec, progress=False)


def _seconds(work: Callable[[], object]) -> float:
    """The shorter of two runs: the first may pay for what is only done once."""
    seconds = []
    for _ in range(2):
        began = time.monotonic()
        work()
        seconds.append(time.monotonic() - began)
    return min(seconds)
