"""What layers inside a module are given and give, and which of them the module's answer comes out of.

Shapes: b samples, k classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dynext.modules.modes import evaluating

Layer = TypeVar("Layer", bound=nn.Module)


@torch.no_grad()
def logits_layer(model: nn.Module, x: Tensor, layers: Iterable[Layer]) -> Layer | None:
    """The one of ``layers``, modules of ``model``, whose output on samples ``x [b ...]`` is the model's own as it is;
    ``None`` where something follows each of them.
    """
    with evaluating(model):
        answer, outputs = outputs_of(model, x, layers)
    for layer, output in outputs.items():
        if output.data_ptr() == answer.data_ptr() and output.shape == answer.shape:
            return layer
    return None


@contextmanager
def given_to(layer: nn.Module) -> Iterator[list[Tensor]]:
    """What the layer is given, call by call, while this is open."""
    given: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    try:
        yield given
    finally:
        hook.remove()


def outputs_of(model: nn.Module, x: Tensor, layers: Iterable[Layer]) -> tuple[Tensor, dict[Layer, Tensor]]:
    """The model's answer, and what each of the layers that ran gave in its last call, in the order of these calls."""
    outputs: dict[Layer, Tensor] = {}

    def record(layer: Layer, inputs: Any, output: Tensor) -> None:
        outputs.pop(layer, None)
        outputs[layer] = output

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_hook(record).remove)
        return model(x), outputs
