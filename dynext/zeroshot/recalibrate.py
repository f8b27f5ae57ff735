"""A few hundred unlabelled samples put right what exits say too often, and still judge them fairly."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TypeGuard

import torch
from torch import Tensor, nn

from dynext.net.dynamic_net import DynamicNet
from dynext.policy.class_bias import class_biases
from dynext.policy.table import ExitTable

FOLDS = 5


def recalibrated(net: DynamicNet, table: ExitTable) -> tuple[DynamicNet, ExitTable]:
    """A copy of ``net`` whose exits have `class_biases` of ``table`` in their last layers, and the table that it makes.

    In that table each sample is answered with biases that were found without it (five folds), so that thresholds chosen
    on it are not chosen on what is already known. With fewer samples than folds nothing is changed, and cosine
    classifiers stay as they are: they have no bias.
    """
    if len(table) < FOLDS:
        return net, table
    fold_n = dealt(table.target_n)
    logits_nek = table.logits_nek.clone()
    for fold in range(FOLDS):
        held_out = fold_n == fold
        biases_ek = class_biases(table.subset((~held_out).nonzero()[:, 0]))
        logits_nek[held_out] += _taken(net, biases_ek).to(logits_nek)
    told = f"{table.rows}, each answered with class biases that were found without it"
    return with_biases(net, class_biases(table)), replace(table, logits_nek=logits_nek, rows=told)


def dealt(target_n: Tensor) -> Tensor:
    """The fold of each sample ``[n]``: class by class, so that none lacks a class that comes every fifth sample,
    say.
    """
    fold_n = torch.empty_like(target_n)
    fold_n[target_n.argsort(stable=True)] = torch.arange(len(target_n)) % FOLDS
    return fold_n


def with_biases(net: DynamicNet, bias_ek: Tensor) -> DynamicNet:
    """A copy of ``net`` whose early exits say ``bias_ek [e k]`` more; it costs nothing at run time."""
    found = copy.deepcopy(net)
    with torch.no_grad():
        for exit, bias_k in zip(found.exits, bias_ek, strict=False):  # the last sample is the full net's
            layer = exit.get_submodule("classifier")
            if _has_bias(layer):
                layer.bias.add_(bias_k.to(layer.bias))
    return found


def _taken(net: DynamicNet, bias_ek: Tensor) -> Tensor:
    """Zero where a classifier has nothing to add them to."""
    able = [_has_bias(exit.get_submodule("classifier")) for exit in net.exits]
    return bias_ek * torch.tensor([*able, False])[:, None]


def _has_bias(layer: nn.Module) -> TypeGuard[nn.Linear]:
    return isinstance(layer, nn.Linear) and layer.bias is not None
