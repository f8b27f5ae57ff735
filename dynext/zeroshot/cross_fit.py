"""A few hundred unlabelled samples used twice: to learn from, and to judge by, each by what learned without it.

Exits may be distilled on them (`cross_fitted`), or only take class biases from them (`recalibrated`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeGuard

import torch
from torch import Generator, Tensor, nn

from dynext.data.samples import Samples, augment
from dynext.net.collect import table_of
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.class_bias import class_biases
from dynext.policy.table import ExitTable
from dynext.seeding import generator
from dynext.types import Batch, BatchNormMode
from dynext.zeroshot.distill import Features, head_logits

FOLDS = 4
"""Of samples that are distilled on: each is answered by exits that were distilled on the other three."""

BIAS_FOLDS = 5
"""Of samples that class biases come from: each is answered with biases of the other four."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Views:
    """Every sample of ``rows`` seen ``count`` times: as it is, then shifted and mirrored, or mixed with another.

    The teacher answers every view itself, so a view need not keep its class.
    Mixed samples for distillation: Beyer et al., CVPR 2022, arXiv:2106.05237.
    """

    rows: Samples
    count: int
    seed: int
    bn: BatchNormMode = "running"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    def __len__(self) -> int:
        return self.count * len(self.rows)

    def __iter__(self) -> Iterator[Batch]:
        for view in range(self.count):
            draw = generator(self.seed * 1000 + view)
            for batch in self.rows:
                yield Batch(x=_view(batch.x, view, draw))


def _view(x: Tensor, view: int, draw: Generator) -> Tensor:
    if view == 0:
        return x
    moved = augment(x, draw, pad=max(1, x.shape[-1] // 16))
    if view % 2:
        return moved
    share = torch.rand(len(x), 1, 1, 1, generator=draw) * 0.5
    return (1 - share) * moved + share * moved[torch.randperm(len(x), generator=draw)]


def cross_fitted(
    net: DynamicNet,
    real: Features,
    synthetic: Features,
    fit_heads: Callable[[DynamicNet, Features, str, float], DynamicNet],
    rows: int,
    seed: int,
) -> tuple[DynamicNet, ExitTable]:
    """Exits distilled on both, and a table of the first ``rows`` of ``real`` as exits answer that did not see them.

    Half of the steps go to the synthesized samples alone, so that all folds can start from there.
    """
    start = fit_heads(net, synthetic, "heads-synthesized", 0.5)
    trained = fit_heads(start, Features.join([synthetic, real]), "heads", 0.5)
    table = held_out_table(
        start, real, synthetic, lambda features, name: fit_heads(start, features, name, 0.5), rows=rows, seed=seed
    )
    return trained, table


def held_out_table(
    net: DynamicNet,
    real: Features,
    synthetic: Features,
    train: Callable[[Features, str], DynamicNet],
    *,
    rows: int,
    seed: int,
) -> ExitTable:
    """What exits say of each of the first ``rows`` samples of ``real`` when they were not distilled on any view of it.

    ``real`` holds the views one after the other, ``rows`` samples each. The samples are dealt into folds; exits
    distilled without a fold answer it. They saw fewer real samples than the final exits, so that thresholds err to the
    safe side.
    """
    fold_n = torch.randperm(rows, generator=generator(seed)) % FOLDS
    fold_of_view = fold_n.repeat(len(real) // rows)
    logits_nek = torch.empty(rows, net.num_exits, net.num_classes)
    for fold in range(FOLDS):
        without = real.subset((fold_of_view != fold).nonzero()[:, 0])
        trained = train(Features.join([synthetic, without]), f"fold{fold}")
        held_out = (fold_n == fold).nonzero()[:, 0]
        logits_nek[held_out] = head_logits(trained, real.subset(held_out))
    told = f"{rows:,} unlabelled samples, each answered by exits that were not distilled on it"
    return table_of(net, logits_nek, label_n=None, rows=told)


def recalibrated(net: DynamicNet, table: ExitTable) -> tuple[DynamicNet, ExitTable]:
    """A copy of ``net`` whose exits have `class_biases` of ``table`` in their last layers, and the table that it makes.

    In that table each sample is answered with biases that were found without it (five folds), so that thresholds chosen
    on it are not chosen on what is already known. With fewer samples than folds nothing is changed, and cosine
    classifiers stay as they are: they have no bias.
    """
    if len(table) < BIAS_FOLDS:
        return net, table
    fold_n = dealt(table.target_n)
    logits_nek = table.logits_nek.clone()
    for fold in range(BIAS_FOLDS):
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
    fold_n[target_n.argsort(stable=True)] = torch.arange(len(target_n)) % BIAS_FOLDS
    return fold_n


def with_biases(net: DynamicNet, bias_ek: Tensor) -> DynamicNet:
    """A copy of ``net`` whose early exits say ``bias_ek [e k]`` more; it costs nothing at run time."""
    biased = copy.deepcopy(net)
    with torch.no_grad():
        for exit, bias_k in zip(biased.exits, bias_ek, strict=False):  # the last sample is the full net's
            layer = exit.get_submodule("classifier")
            if _has_bias(layer):
                layer.bias.add_(bias_k.to(layer.bias))
    return biased


def _taken(net: DynamicNet, bias_ek: Tensor) -> Tensor:
    """Zero where a classifier has nothing to add them to."""
    able = [_has_bias(exit.get_submodule("classifier")) for exit in net.exits]
    return bias_ek * torch.tensor([*able, False])[:, None]


def _has_bias(layer: nn.Module) -> TypeGuard[nn.Linear]:
    return isinstance(layer, nn.Linear) and layer.bias is not None
