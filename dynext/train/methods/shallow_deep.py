"""Shallow-Deep Networks: internal classifiers on a frozen net, or trained with it and weighing ever more."""

from __future__ import annotations

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from dynext.errors import FitError
from dynext.fitting import FitConfig, FitOptions, configured
from dynext.losses.exits import shallow_deep_weights, weighted_cross_entropy
from dynext.net.cascade import cascade
from dynext.net.dynamic_net import DynamicNet
from dynext.train.batches import Augment, BatchSampler
from dynext.train.exit_loop import EveryExit, HeadOutputs, check_joinable, labelled, train_heads, train_whole
from dynext.types import Source
from dynext.usual_modes import in_usual_modes

USUAL = FitConfig(batch_size=64)


@in_usual_modes
def shallow_deep(
    net: DynamicNet,
    source: Source,
    config: FitConfig | None = None,
    *,
    trunk: Literal["frozen", "joint"] = "frozen",
    most_confident: bool = False,
    augment: Augment | None = None,
    **options: Unpack[FitOptions],
) -> DynamicNet:
    """A copy of ``net`` with its exits trained on labelled samples: alone, or together with the trunk.

    ``"frozen"`` (the paper's "IC only") trains heads on cached features; the last exit is bit for bit what it was.
    ``"joint"`` weighs exit i by ``min(d_i, .01 + t d_i)`` at a share t of the training, d_i its share of the MACs.

    Args:
        most_confident: a sample of which no exit is sure gets the answer of the surest one (`dynext.net.cascade`, rule
            "surest").
        augment: with ``trunk="joint"``; cached features cannot be augmented.

    Raises:
        FitError: no early exit, or no such ``trunk``.
        SourceError: no labels, or samples of another shape than the model expects.

    Source: Kaya et al., ICML 2019, arXiv:1810.07052: exits at 15 to 90 % of the MACs behind a learned mix of pooled
    maximum and average (`dx.heads.pooled_heads`); frozen: Adam 1e-3, 25 epochs. Its frozen trainer runs the net in
    training mode, and BatchNorm drifts; ours never does.
    """
    config = configured(USUAL, config, options)
    if most_confident:
        check_joinable(net)
    if trunk == "frozen":
        trained = _frozen(net, source, config)
    elif trunk == "joint":
        trained = _joint(net, source, config, augment)
    else:
        raise FitError(f"trunk={trunk!r}; give 'frozen' or 'joint'")
    return cascade(trained, "surest") if most_confident else trained


def _frozen(net: DynamicNet, source: Source, config: FitConfig) -> DynamicNet:
    def loss(outputs: HeadOutputs, y_b: Tensor, done: float) -> Tensor:
        return torch.stack([F.cross_entropy(logits, y_b) for logits in outputs.own_e]).sum()

    return train_heads(net, copy.deepcopy(net), source, labelled(config, "Shallow-Deep, frozen"), loss)


def _joint(net: DynamicNet, source: Source, config: FitConfig, augment: Augment | None) -> DynamicNet:
    batches = BatchSampler.of(source, net, augment)
    depth_e = [macs / net.trunk_macs_e[-1] for macs in net.trunk_macs_e[:-1]]

    def loss(logits_e: list[Tensor], y_b: Tensor, done: float) -> Tensor:
        return weighted_cross_entropy(logits_e, y_b, shallow_deep_weights(done, depth_e))

    return train_whole(net, batches, labelled(config, "Shallow-Deep, joint"), EveryExit, loss)
