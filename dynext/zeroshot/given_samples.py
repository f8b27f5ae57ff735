"""Samples that a conversion is given in whatever form, as what its steps work on."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from dynext.data.read_sources import held
from dynext.data.samples import Samples
from dynext.data.sources import as_source, named
from dynext.errors import SourceError
from dynext.types import Data, InputSpec, Source
from dynext.zeroshot.settings import Synthesis, Unlabelled

log = logging.getLogger("dynext")


def given_samples(
    teacher: nn.Module,
    example: Tensor | InputSpec | None,
    calibrate: Data | Unlabelled | None,
    synthesis: Synthesis | Data,
) -> tuple[Unlabelled | None, Synthesis | Source]:
    """Images to calibrate on, in memory and unlabelled, and what to distil on.

    Raises:
        SourceError: something that holds no samples, or nothing says how they are to be normalized.
    """
    images = calibrate if calibrate is None or isinstance(calibrate, Unlabelled) else Unlabelled(calibrate)
    spec = _spec(teacher, example, None if images is None else images.samples, synthesis)
    if images is not None:
        with named("calibrate"):
            images = replace(images, samples=_in_memory(images.samples, spec))
    if not isinstance(synthesis, Synthesis | Source):
        with named("synthesis"):
            synthesis = as_source(synthesis, _told(spec, "synthesis"), labelled=False)
    return images, synthesis


def _in_memory(given: Any, spec: InputSpec | None) -> Samples:
    if isinstance(given, Source) and given.bn == "batch":
        raise SourceError(
            "these are synthesized samples; give real ones: (x, y), a data set, a folder; or leave it out"
        )
    if isinstance(given, Samples):
        as_source(given)  # looks at the pixels
        return given
    source = as_source(given, _told(spec, "calibrate"), labelled=False)
    return held(source, _told(spec, "calibrate"), "calibrate")


def _spec(teacher: nn.Module, example: Tensor | InputSpec | None, *samples: Any) -> InputSpec | None:
    """What is known of the normalization: by the caller, by samples, or by the net."""
    if isinstance(example, InputSpec):
        return example
    own = [spec for one in samples if isinstance(spec := getattr(one, "spec", None), InputSpec)]
    return own[0] if own else _of_net(teacher, example)


def _of_net(teacher: nn.Module, example: Tensor | None) -> InputSpec | None:
    """What timm keeps with its nets, for the example's shape where there is one."""
    own = getattr(teacher, "spec", None)
    if isinstance(own, InputSpec):
        return own
    kept = getattr(teacher, "pretrained_cfg", None)
    if not isinstance(kept, dict) or not kept.get("mean") or not kept.get("std"):
        return None
    given = isinstance(example, Tensor) and example.ndim == 4
    shape = tuple(example.shape[1:]) if given else tuple(kept.get("input_size") or ())  # type: ignore[union-attr]
    if len(shape) != 3 or shape[0] != len(kept["mean"]):
        return None
    spec = InputSpec(shape=shape, mean=tuple(kept["mean"]), std=tuple(kept["std"]))
    log.info("the net keeps its normalization: mean %s, std %s", spec.mean, spec.std)
    return spec


def _told(spec: InputSpec | None, name: str) -> InputSpec:
    if spec is None:
        raise SourceError(
            f"nothing says how the net wants these pixels normalized; give a spec in place of the example: "
            f"dx.convert(net, dx.InputSpec(shape=(3, 224, 224), mean=(...), std=(...)), {name}=...), with mean 0 and "
            f"std 1 for a net that takes pixels in [0, 1]"
        )
    return spec
