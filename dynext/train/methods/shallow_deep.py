"""Shallow-Deep Networks: internal classifiers on a frozen net, or trained with it and weighing ever more."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from dynext.data.given import LearnOptions, takes_data
from dynext.fitting import FitConfig, configured
from dynext.losses.exits import shallow_deep_weights, weighted_cross_entropy
from dynext.net.cascade import cascade
from dynext.net.dynamic_net import DynamicNet
from dynext.train.batches import Augment
from dynext.train.by_loss import Trunk, train_by_loss
from dynext.train.exit_loop import check_joinable, labelled
from dynext.types import Data
from dynext.usual_modes import in_usual_modes

USUAL = FitConfig(batch_size=64)


@in_usual_modes
@takes_data("source")
def shallow_deep(
    net: DynamicNet,
    source: Data,
    config: FitConfig | None = None,
    *,
    trunk: Trunk = "frozen",
    most_confident: bool = False,
    augment: Augment | None = None,
    **options: Unpack[LearnOptions],
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
    frozen = trunk == "frozen"
    config = labelled(config, f"Shallow-Deep, {trunk}")
    loss = of_early_exits if frozen else of_all_exits
    trained = train_by_loss(net, source, config, loss, trunk=trunk, augment=None if frozen else augment)
    return cascade(trained, "surest") if most_confident else trained


def of_early_exits(logits_nek: Tensor, y_n: Tensor, net: DynamicNet) -> Tensor:
    """The sum of the early exits' cross-entropies."""
    return torch.stack([F.cross_entropy(logits, y_n) for logits in logits_nek[:, :-1].unbind(1)]).sum()


def of_all_exits(logits_nek: Tensor, y_n: Tensor, net: DynamicNet, done: float) -> Tensor:
    """The sum of all exits' cross-entropies, early ones weighing more from step to step."""
    depth_e = [macs / net.trunk_macs_e[-1] for macs in net.trunk_macs_e[:-1]]
    return weighted_cross_entropy(logits_nek.unbind(1), y_n, shallow_deep_weights(done, depth_e))
