"""What a head of one's own must keep to, tried out: each broken promise is told with what to write instead.

Shapes: b samples, k classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynext.errors import SplitError, line
from dynext.modules.modes import evaluating
from dynext.modules.own_parts import noise


@torch.no_grad()
def check_own_head(module: nn.Module, tap: Sequence[int], num_classes: int, name: str) -> None:
    """That ``module`` answers taps ``[b ...]`` by logits ``[b k]``, each sample by itself, and has something to learn.

    It is run in evaluation, which also gives lazy layers their sizes.

    Raises:
        SplitError: names the promise that is broken.
    """
    without_in_place(module)
    with evaluating(module):
        x = noise(module, tap)
        kept = x.clone()
        answer = _answer(module, x, f"{name} on a tap {tuple(tap)}")
        _check_shape(answer, len(x), num_classes, name)
        if not torch.equal(x, kept):
            raise SplitError(
                f"{name} changes the tap that it is given, which the net still needs; begin with x.clone()"
            )
        alone = torch.cat([_answer(module, x[i : i + 1].clone(), f"{name} on one sample") for i in range(len(x))])
        again = _answer(module, x.clone(), name)
    if not _alike(again, answer):
        raise SplitError(
            f"{name} answers the same samples otherwise the second time, in evaluation; "
            f"let chance act only in training: nn.Dropout(p), or F.dropout(x, p, self.training)"
        )
    if not _alike(alone, answer):
        raise SplitError(
            f"{name} answers a sample alone otherwise than in a batch, and samples leave one by one; let it mix "
            f"nothing across dimension 0 (a BatchNorm needs track_running_stats=True)"
        )
    if not any(True for _ in (*module.parameters(), *module.buffers())):
        raise SplitError(
            f"{name} has no parameters, so there is nothing to learn; end it in nn.Linear(d, {num_classes})"
        )


def without_in_place(module: nn.Module) -> None:
    """Activations of ``module`` write new tensors: a head is given a tensor that the net still needs."""
    for inner in module.modules():
        if getattr(inner, "inplace", False) is True:
            setattr(inner, "inplace", False)  # noqa: B010  torch's types do not know it


def _answer(module: nn.Module, x: Tensor, told: str) -> Tensor:
    try:
        answer = module(x)
    except Exception as error:  # a module of one's own may raise anything
        raise SplitError(f"{told} fails: {line(error)}; a head is given [b, {_sizes(x)}]") from error
    if not isinstance(answer, Tensor):
        raise SplitError(f"{told} gives a {type(answer).__name__}, not a tensor; end its forward with: return logits")
    return answer


def _check_shape(answer: Tensor, b: int, k: int, name: str) -> None:
    shape = tuple(answer.shape)
    if shape == (b, k) and answer.is_floating_point():
        return
    if not answer.is_floating_point():
        advice = "give logits, floats"
    elif len(shape) == 2 and shape[0] == b:
        advice = f"the net tells {k} classes apart: end in nn.Linear({shape[1]}, {k}), or write {k} for {shape[1]}"
    elif shape[:2] == (b, k):
        advice = "average or flatten what is left of the map: nn.AdaptiveAvgPool2d(1), nn.Flatten()"
    elif len(shape) > 2 and shape[0] == b:
        advice = f"end in nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear({shape[1]}, {k})"
    else:
        advice = "keep the samples in dimension 0, of one sample too (no squeeze())"
    raise SplitError(f"{name} gives {list(shape)} for {b} samples, expected [{b}, {k}]; {advice}")


def _alike(one: Tensor, other: Tensor) -> bool:
    """As far as kernels agree on one sample and on some."""
    loose = 1e-3 if one.dtype in (torch.float32, torch.float64) else 5e-2
    scale = float(other.float().abs().amax())
    return one.shape == other.shape and torch.allclose(
        one.float(), other.float(), rtol=loose, atol=loose * max(scale, 1e-6), equal_nan=True
    )


def _sizes(x: Tensor) -> str:
    return ", ".join(map(str, x.shape[1:]))


@torch.no_grad()
def check_own_gates(gates: Any, taps: Sequence[Sequence[int]], input_shape: Sequence[int], name: str) -> None:
    """That ``gates``, a module with ``begin`` and ``ask``, gives a logit ``[b]`` for every stage, each sample by
    itself.

    Raises:
        SplitError: names the promise that is broken.
    """
    without_in_place(gates)
    with evaluating(gates):
        x = noise(gates, input_shape)
        tap_g = [noise(gates, tap, seed=1 + g) for g, tap in enumerate(taps)]
        kept = [x.clone(), *(tap.clone() for tap in tap_g)]
        together = _decided(gates, x, tap_g, name)
        if not all(torch.equal(now, before) for now, before in zip([x, *tap_g], kept, strict=True)):
            raise SplitError(f"{name} change what they are given, which the net still needs; begin with x.clone()")
        again = _decided(gates, x, tap_g, name)
        alone = [_decided(gates, x[i : i + 1], [tap[i : i + 1] for tap in tap_g], name) for i in range(len(x))]
    if not _alike(again, together):
        raise SplitError(
            f"{name} decide otherwise the second time, in evaluation; let nothing stay on the module, and chance act "
            f"in training only: hand on what is remembered as memory, tensors [b ...]"
        )
    if not _alike(torch.cat(alone), together):
        raise SplitError(
            f"{name} decide about a sample alone otherwise than in a batch; let them mix nothing across dimension 0"
        )


def _decided(gates: Any, x: Tensor, tap_g: Sequence[Tensor], name: str) -> Tensor:
    """All logits ``[b g]`` of a pass in which every stage runs."""
    try:
        memory = gates.begin(x)
    except Exception as error:  # gates of one's own may raise anything
        raise SplitError(f"{name} fail at begin: {line(error)}; it is given samples [b, {_sizes(x)}]") from error
    logit_g = []
    _check_memory(memory, len(x), f"begin of {name}")
    if getattr(gates, "at_once", False) and (not memory or memory[0].shape != (len(x), len(tap_g))):
        given = tuple(memory[0].shape) if memory else "nothing"
        raise SplitError(
            f"{name} decide at once, so begin(x) must give (logits [{len(x)}, {len(tap_g)}],), not {given}"
        )
    for g, tap in enumerate(tap_g):
        try:
            answer = gates.ask(g, tap, memory)
        except Exception as error:
            raise SplitError(f"{name} fail at stage {g}: {line(error)}; they are given [b, {_sizes(tap)}]") from error
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise SplitError(f"ask of {name} gives a {type(answer).__name__}; return logit_b, memory")
        logit_b, memory = answer
        if not isinstance(logit_b, Tensor) or logit_b.shape != (len(x),) or not logit_b.is_floating_point():
            shape = list(logit_b.shape) if isinstance(logit_b, Tensor) else f"a {type(logit_b).__name__}"
            raise SplitError(
                f"{name} give {shape} before gated stage {g} for {len(x)} samples, expected a logit each, [{len(x)}]; "
                f"end in nn.Linear(d, 1)"
            )
        _check_memory(memory, len(x), f"ask of {name}")
        logit_g.append(logit_b)
    return torch.stack(logit_g, dim=1)


def _check_memory(memory: Any, b: int, name: str) -> None:
    if not isinstance(memory, tuple) or not all(isinstance(kept, Tensor) and kept.shape[:1] == (b,) for kept in memory):
        raise SplitError(
            f"{name} gives as memory {type(memory).__name__}; give a tuple of tensors [b ...], () for none: of each "
            f"sample's own, as samples leave"
        )
