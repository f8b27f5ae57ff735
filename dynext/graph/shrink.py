"""Stages made smaller: some left out, tensors of other sizes, and shapes and MACs of what remains measured anew.

What was taken away is kept on the net as JSON (``StagedNet.shrunk``), so that the same can be done to the model's own
stages when a saved net is loaded: ``{"cuts": of the model's stages, "dropped": names, "sizes": {stage: {tensor:
shape}}, "groups": {stage: {module: groups}}}``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from dynext.errors import SplitError, line
from dynext.graph.macs import count_macs
from dynext.graph.stage import LiveTensors, Stage, StagedNet

NUM_SAMPLES = 2
"""How many samples shapes and MACs are measured with."""


def shrink(staged: StagedNet, shrunk: Mapping[str, Any] | None) -> StagedNet:
    """A copy of the model's own stages with what ``shrunk`` says taken away; resized tensors hold zeros, to be loaded
    into.
    """
    if shrunk is None:
        return copy.deepcopy(staged)
    small = without(staged, shrunk["dropped"])
    for stage in small.stages:
        _resize(stage, shrunk["sizes"].get(stage.name, {}), shrunk["groups"].get(stage.name, {}))
    return measured(small, shrunk)


def without(staged: StagedNet, names: Sequence[str]) -> StagedNet:
    """A copy without the stages ``names``, each of which a sample may skip.

    Raises:
        SplitError: no such stage, or one that a sample may not skip.
    """
    skippable = [staged.stages[s].name for s in staged.skippable]
    wrong = [name for name in names if name not in skippable]
    if wrong:
        raise SplitError(f"{wrong[0]!r} cannot be left out; stages that may be: {', '.join(skippable) or 'none'}")
    small = copy.deepcopy(staged)
    return _chained(small, [stage for stage in small.stages if stage.name not in names], staged.shrunk)


def measured(staged: StagedNet, shrunk: Mapping[str, Any] | None) -> StagedNet:
    """These very stages, in evaluation, with the shapes and MACs that they now have.

    Raises:
        SplitError: a stage, named in the message, that cannot take what the stage before it gives.
    """
    live: LiveTensors = (staged.zeros(NUM_SAMPLES),)
    stages = []
    for stage in staged.eval().stages:
        try:
            with torch.no_grad():
                out = stage(*live)
            macs = count_macs(stage, *live)
        except RuntimeError as error:
            shapes = ", ".join(str(tuple(tensor.shape[1:])) for tensor in live)
            raise SplitError(f"stage {stage.name!r} cannot take {shapes}: {line(error)}") from error
        stages.append(
            Stage(
                stage.body,
                name=stage.name,
                num_live_in=stage.num_live_in,
                live=[(tuple(tensor.shape[1:]), tensor.dtype) for tensor in out],
                tap=stage.tap,
                skippable=stage.skippable,
                macs=macs,
            )
        )
        live = out
    return _chained(staged, stages, shrunk)


def record(staged: StagedNet, *, dropped: Sequence[str], before: StagedNet) -> dict[str, Any]:
    """What tells ``staged`` from ``before`` (the same stages but for ``dropped``), added to what that had lost."""
    kept = before.shrunk or {"cuts": list(before.cuts), "dropped": [], "sizes": {}, "groups": {}}
    sizes = {name: dict(shapes) for name, shapes in kept["sizes"].items() if name not in dropped}
    groups = {name: dict(counts) for name, counts in kept["groups"].items() if name not in dropped}
    old = {stage.name: stage for stage in before.stages}
    for stage in staged.stages:
        was = old[stage.name].state_dict()
        changed = {key: list(t.shape) for key, t in stage.state_dict().items() if t.shape != was[key].shape}
        regrouped = {
            path: module.groups
            for path, module in stage.named_modules()
            if isinstance(module, _ConvNd) and module.groups != old[stage.name].get_submodule(path).groups
        }
        if changed:
            sizes[stage.name] = {**sizes.get(stage.name, {}), **changed}
        if regrouped:
            groups[stage.name] = {**groups.get(stage.name, {}), **regrouped}
    return {"cuts": kept["cuts"], "dropped": [*kept["dropped"], *dropped], "sizes": sizes, "groups": groups}


def _chained(staged: StagedNet, stages: Sequence[Stage], shrunk: Mapping[str, Any] | None) -> StagedNet:
    chained = StagedNet(
        stages,
        input_shape=staged.input_shape,
        num_classes=staged.num_classes,
        granularity=staged.granularity,
    ).train(staged.training)
    chained.shrunk = None if shrunk is None else dict(shrunk)
    return chained


def _resize(stage: Stage, sizes: Mapping[str, Sequence[int]], groups: Mapping[str, int]) -> None:
    for path, count in groups.items():
        module: Any = stage.get_submodule(path)
        module.groups = count
    for key, shape in sizes.items():
        path, _, name = key.rpartition(".")
        module = stage.get_submodule(path)
        tensor = getattr(module, name)
        fresh = tensor.new_zeros(tuple(shape))
        if isinstance(tensor, nn.Parameter):
            fresh = nn.Parameter(fresh, requires_grad=tensor.requires_grad)
        setattr(module, name, fresh)
        _update_sizes(module)


def _update_sizes(module: Any) -> None:
    """Bring a module's own figures (``in_channels`` and the like) in line with the weight that it now has."""
    if isinstance(module, _ConvNd):
        first, second = module.weight.shape[:2]
        turned = isinstance(module, _ConvTransposeNd)
        module.in_channels = first if turned else second * module.groups
        module.out_channels = second * module.groups if turned else first
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _BatchNorm) and module.affine:
        module.num_features = len(module.weight)
    elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        module.normalized_shape = tuple(module.weight.shape)
