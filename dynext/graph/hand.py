"""Stages given by hand, for nets that no tracer takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dynext.errors import SplitError, line
from dynext.graph.hooks import has_hooks, watching_hooks
from dynext.graph.macs import counting
from dynext.graph.private import private_copy
from dynext.graph.probe import BATCHES, take_samples
from dynext.graph.stage import OUTPUT, LiveTensors, Stage, StagedNet
from dynext.seeding import seeded_if_drawn
from dynext.usual_modes import in_usual_modes


@in_usual_modes
def stages_by_hand(modules: Sequence[nn.Module], example: Tensor, names: Sequence[str] | None = None) -> StagedNet:
    """Chain modules that each take and give a tensor, or several live tensors, into a staged net of their copies.

    Args:
        modules: in order; the first takes ``[b ...]``, the last gives logits ``[b k]``. Each is called with what the
            module before it gave, one positional argument a tensor.
        example: ``[b ...]``, any number of samples.
        names: what to call the place after each module but the last; ``"stage0"``, ``"stage1"``, ... by default.

    Exits tap the first tensor that a stage gives. A stage counts as skippable when it gives tensors of the shapes and
    types that it takes: whether skipping it makes sense is yours to know. Hooks that change what a module gives stay on
    its copy; those that only watch do not.

    Raises:
        SplitError: fewer than two modules, a module that cannot take what the one before gives, tensors without the
            batch as first dimension, an output that is not ``[b k]``.
    """
    names = _checked_names(modules, names)
    with torch.inference_mode(False), torch.no_grad(), seeded_if_drawn(0):
        private = private_copy(nn.ModuleList(modules))  # together, so that what they share stays shared
        lives: list[LiveTensors] = [(take_samples(example.detach(), count),) for count in BATCHES]
        modules = [part for part in private._modules.values() if part is not None]  # `children` gives each only once
        chain = list(zip(modules, [*names, OUTPUT], strict=True))
        stages = []
        if has_hooks(private):
            with watching_hooks(private):
                live = lives[0]
                for index, (module, name) in enumerate(chain):
                    live = _called(module, name, index, live)
        for index, (module, name) in enumerate(chain):
            stage, lives = _stage(module, name, index, lives)
            stages.append(stage)
    (logits,) = lives[0] if len(lives[0]) == 1 else (None,)
    if logits is None or logits.ndim != 2:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in lives[0])
        raise SplitError(f"the last module gives {shapes} for {BATCHES[0]} samples; expected logits [b k]")
    input_shape = tuple(example.shape[1:])
    return StagedNet(stages, input_shape=input_shape, num_classes=logits.shape[1], granularity="hand").eval()


def _checked_names(modules: Sequence[nn.Module], names: Sequence[str] | None) -> list[str]:
    if len(modules) < 2:
        raise SplitError(f"{len(modules)} modules given; a net of stages needs at least two")
    checked = [f"stage{index}" for index in range(len(modules) - 1)] if names is None else list(names)
    if len(checked) != len(modules) - 1 or len(set(checked)) != len(checked) or OUTPUT in checked:
        raise SplitError(
            f"names {checked} for {len(modules)} modules; give {len(modules) - 1} different ones, one for the place "
            f"after each module but the last (which is {OUTPUT!r})"
        )
    return checked


def _stage(module: nn.Module, name: str, index: int, lives: list[LiveTensors]) -> tuple[Stage, list[LiveTensors]]:
    """One stage and what it gives for each of the two batch sizes."""
    with counting() as macs:
        first = _called(module, name, index, lives[0])
    outs = [first, _called(module, name, index, lives[1])]
    kinds = [[(tuple(tensor.shape[1:]), tensor.dtype) for tensor in live] for live in (lives[0], outs[0])]
    stage = Stage(
        module,
        name=name,
        num_live_in=len(lives[0]),
        live=kinds[1],
        tap=0,
        skippable=kinds[0] == kinds[1],
        macs=macs.total() // BATCHES[0],
    )
    return stage, outs


def _called(module: nn.Module, name: str, index: int, live: LiveTensors) -> LiveTensors:
    given = ", ".join(str(tuple(tensor.shape)) for tensor in live)
    source = "the example" if index == 0 else f"stage {index - 1}"
    try:
        out = module(*live)
    except Exception as error:
        raise SplitError(
            f"stage {index} ({name!r}) cannot take what {source} gives ({given}): {line(error)}"
        ) from error
    outs = tuple(out) if isinstance(out, tuple | list) else (out,)
    if not outs or not all(isinstance(tensor, Tensor) and len(tensor.shape) > 0 for tensor in outs):
        raise SplitError(f"stage {index} ({name!r}) gives a {type(out).__name__}; expected a tensor or a tuple of them")
    if any(len(tensor) != len(live[0]) for tensor in outs):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in outs)
        raise SplitError(f"stage {index} ({name!r}) gives {shapes} for {len(live[0])} samples; samples must come first")
    return outs
