"""Mixed training: the backbone first, then all of it together."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from dynext.data.given import LearnOptions, takes_data
from dynext.fitting import FitConfig, FitOptions, configured
from dynext.net.dynamic_net import DynamicNet
from dynext.train.batches import Augment, BatchSampler
from dynext.train.exit_loop import labelled, train_whole
from dynext.train.methods.joint import USUAL, joint
from dynext.types import Data
from dynext.usual_modes import in_usual_modes


@in_usual_modes
@takes_data("source")
def mixed(
    net: DynamicNet,
    source: Data,
    config: FitConfig | None = None,
    *,
    backbone: FitConfig | FitOptions,
    augment: Augment | None = None,
    **options: Unpack[LearnOptions],
) -> DynamicNet:
    """A copy of ``net`` trained in two steps: the trunk alone by the last exit's cross-entropy, then all of it jointly.

    Args:
        config: of the second step, `joint`.
        backbone: of the first step: a config, or a mapping of its fields. Give the two checkpoints of their own.

    Raises:
        FitError: no early exit.
        SourceError: no labels, or samples of another shape than the model expects.

    Source: Kubaty et al., ICML 2025, which finds about two points more at the last exit than with heads trained on the
    frozen backbone.
    """
    config = configured(USUAL, config, options)
    batches = BatchSampler.of(source, net, augment)

    def loss(logits_bk: Tensor, y_b: Tensor, done: float) -> Tensor:
        return F.cross_entropy(logits_bk, y_b)

    trained = train_whole(net, batches, labelled(configured(USUAL, backbone, {}), "backbone"), LastExit, loss)
    return joint(trained, source, config, augment=augment)


class LastExit(nn.Module):
    """``x [b ...]`` to the full net's logits ``[b k]``."""

    def __init__(self, net: DynamicNet) -> None:
        super().__init__()
        self.staged = net.staged

    def forward(self, x: Tensor) -> Tensor:
        return self.staged(x)
