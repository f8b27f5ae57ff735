"""Verbs that compute work the same wherever they are called: under ``no_grad``, in inference mode, with a default type
of float64 or inside autocast.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def usual_modes() -> Iterator[None]:
    """Gradients on, inference mode and autocast off, new tensors float32; the caller's modes come back."""
    default = torch.get_default_dtype()
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                modes.enter_context(torch.autocast(kind, enabled=False))
        if default != torch.float32:
            modes.callback(torch.set_default_dtype, default)
            torch.set_default_dtype(torch.float32)
        yield


def in_usual_modes(verb: Callable[P, R]) -> Callable[P, R]:
    """``verb`` in `usual_modes`; tensors that were made in inference mode, which gradients refuse, are copied first."""

    @functools.wraps(verb)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        with usual_modes():
            return verb(*map(_usable, args), **{name: _usable(value) for name, value in kwargs.items()})  # type: ignore[arg-type]

    return called


def _usable(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_inference():
        return value.clone()
    if isinstance(value, nn.Module) and any(map(_of_inference, chain(value.parameters(), value.buffers()))):
        return copy.deepcopy(value)
    return value


def _of_inference(tensor: Tensor) -> bool:
    return not is_lazy(tensor) and tensor.is_inference()
