"""The layer that a classifier's logits come from: its input is the net's feature, its weights tell the classes apart.

There are two questions, with different answers where something follows that layer. `last_linear` (and what it is made
of, `logits_layer`) finds the layer whose output *is* the logits, so that its input can be compared with what other
exits see and another classifier can be put in its place. `deciding_layer` finds the layer whose outputs decide which
class is answered, be they averaged over places, cut off by a ReLU or divided by a temperature afterwards.

Shapes: b samples, k classes, d features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dynext.errors import FitError, SourceError
from dynext.modules.exit_layers import Cosine
from dynext.modules.layer_outputs import logits_layer, outputs_of
from dynext.modules.modes import evaluating
from dynext.net.dynamic_net import DynamicNet

Linear = nn.Linear | nn.Conv2d
"""What gives one value per class, at one place or (a 1x1 convolution) at many."""


def last_linear(net: DynamicNet) -> nn.Linear | Cosine:
    """The layer of the last stage that gives the full net's logits: the only one with an output a class, or of several
    the one whose output they are (`logits_layer`).

    Raises:
        FitError: the last stage has no linear layer with an output a class, or several that the logits come out of.
    """
    linears = [m for m in net.staged.stages[-1].modules() if isinstance(m, nn.Linear | Cosine)]
    layers = [m for m in linears if m.out_features == net.num_classes]
    layer = layers[0] if len(layers) == 1 else logits_layer(net.staged, net.staged.zeros(2), layers)
    if layer is None:
        mixed = f"mixes the answers of {len(layers)} linear layers"
        raise FitError(
            f"the net {mixed if layers else 'does not end in a linear layer'} (nn.Linear), whose input would be the "
            f"last exit's features; use a method that reads logits alone: train it jointly, or with distillation"
        )
    return layer


@torch.no_grad()
def deciding_layer(model: nn.Module, x: Tensor) -> Linear:
    """Of the linear layers and 1x1 convolutions of ``model`` with as many outputs as there are classes, the one that
    runs last and whose outputs decide the answer to samples ``x [b ...]``.

    Whether they decide is tried out: pushing one output up must make that class the answer. So neither the order of
    definition nor a bottleneck that happens to be ``k`` wide misleads.

    Raises:
        SourceError: the answer is not ``[b k]``, or of fewer than two classes.
        FitError: there is no such layer.
    """
    with evaluating(model):
        linears = [m for m in model.modules() if isinstance(m, Linear) and _num_outputs(m)]
        answer_bk, outputs = outputs_of(model, x, linears)
        k = answer_bk.shape[-1]
        if answer_bk.ndim != 2 or k < 2:
            raise SourceError(
                f"the model answers {list(answer_bk.shape)} for {len(x)} samples; "
                f"expected [{len(x)}, classes], at least 2"
            )
        for layer in reversed(outputs):
            if _num_outputs(layer) == k and all(_decides(model, layer, x, c) for c in (0, k - 1)):
                return layer
    raise FitError(
        f"{type(model).__name__} has no last linear layer (nn.Linear, or nn.Conv2d with a 1x1 kernel) whose {k} "
        f"outputs decide its answer"
    )


def _num_outputs(layer: Linear) -> int:
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels if layer.kernel_size == (1, 1) and layer.groups == 1 else 0
    return layer.out_features


def _decides(model: nn.Module, layer: Linear, x: Tensor, c: int) -> bool:
    """Whether class ``c`` becomes the answer when that output of ``layer`` is pushed up."""

    def push(module: Linear, inputs: Any, output: Tensor) -> Tensor:
        pushed = output.clone()
        axis = 1 if isinstance(module, nn.Conv2d) else -1
        pushed.select(axis, c).add_(10 * (output.abs().amax() + 1))
        return pushed

    hook = layer.register_forward_hook(push)
    try:
        return bool((model(x).argmax(-1) == c).all())
    finally:
        hook.remove()
