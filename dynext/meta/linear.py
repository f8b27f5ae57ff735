"""The linear layer that gives a net's final logits: what new classes replace and prototypes are measured before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynext.core.modes import evaluating
from dynext.core.net import DynamicNet
from dynext.errors import FitError


@dataclass(frozen=True, kw_only=True, eq=False)
class LastLinear:
    """The layer, and its path inside the last stage's body (empty: the body itself)."""

    module: nn.Linear
    path: str


def last_linear(net: DynamicNet) -> LastLinear:
    """The ``nn.Linear`` whose output is the net's output.

    Raises:
        FitError: the net ends in something else.
    """
    stage = net.staged.stages[-1]
    said: dict[str, Tensor] = {}
    body = stage.body
    linears = {path: m for path, m in body.named_modules() if isinstance(m, nn.Linear)}
    hooks = [
        m.register_forward_hook(lambda _m, _given, out, path=path: said.__setitem__(path, out))
        for path, m in linears.items()
    ]
    like = next(net.parameters())
    try:
        with torch.no_grad(), evaluating(net):
            logits = net.staged(torch.zeros(2, *net.staged.input_shape, dtype=like.dtype, device=like.device))
    finally:
        for hook in hooks:
            hook.remove()
    for path, out in said.items():
        if out.data_ptr() == logits.data_ptr() and out.shape == logits.shape:
            return LastLinear(module=linears[path], path=path)
    raise FitError(
        "the net's logits do not come out of an nn.Linear, so that its last classifier cannot be replaced; "
        "learn the same classes instead (classifiers='kept', with steps), or use dx.few_shot"
    )


@contextmanager
def noting_input(module: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, what ``module`` is given is kept in the list, in the order of calls."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
    try:
        yield seen
    finally:
        hook.remove()
