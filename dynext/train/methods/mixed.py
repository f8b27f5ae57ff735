"""Mixed training: the backbone first, then all of it together."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dynext.fitting import FitConfig
from dynext.net.dynamic_net import DynamicNet
from dynext.train.exit_loop import Augment, BatchSampler, labelled, train_whole
from dynext.train.methods.joint import joint
from dynext.types import Source


def mixed(
    net: DynamicNet,
    source: Source,
    config: FitConfig,
    *,
    backbone: FitConfig,
    batch_size: int = 64,
    augment: Augment | None = None,
) -> DynamicNet:
    """A copy of ``net``: by ``backbone`` the trunk alone learns from the last exit's cross-entropy, then by ``config``
    all of it jointly.

    Raises:
        FitError: no early exit.
        SourceError: no labels, or samples of another shape than the model expects.

    Source: Kubaty et al., ICML 2025, which finds about two points more at the last exit than with heads trained on the
    frozen backbone. Give the two configs checkpoints of their own.
    """
    rows = BatchSampler.of(source, net, augment)

    def loss(logits_bk: Tensor, y_b: Tensor, done: float) -> Tensor:
        return F.cross_entropy(logits_bk, y_b)

    first = labelled(backbone, "backbone")
    trained = train_whole(net, rows, first, LastExit, loss, batch_size=batch_size)
    return joint(trained, source, config, batch_size=batch_size, augment=augment)


class LastExit(nn.Module):
    """``x [b ...]`` to the full net's logits ``[b k]``."""

    def __init__(self, net: DynamicNet) -> None:
        super().__init__()
        self.staged = net.staged

    def forward(self, x: Tensor) -> Tensor:
        return self.staged(x)
