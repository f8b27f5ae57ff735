"""Joint training: every exit's cross-entropy, weighted, at once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import Unpack

from dynext.data.given import LearnOptions, takes_data
from dynext.errors import FitError
from dynext.fitting import FitConfig, configured
from dynext.losses.exits import weighted_cross_entropy
from dynext.net.dynamic_net import DynamicNet
from dynext.train.batches import Augment
from dynext.train.by_loss import train_by_loss
from dynext.train.exit_loop import labelled
from dynext.types import Data
from dynext.usual_modes import in_usual_modes

USUAL = FitConfig(batch_size=64)


@in_usual_modes
@takes_data("source")
def joint(
    net: DynamicNet,
    source: Data,
    config: FitConfig | None = None,
    *,
    weight_e: Sequence[float] | None = None,
    augment: Augment | None = None,
    **options: Unpack[LearnOptions],
) -> DynamicNet:
    """A copy of ``net``, trunk and exits trained together on labelled samples.

    Args:
        weight_e: what each exit's loss counts, the last exit included. All alike without it, as MSDNet has it;
            BranchyNet gives the first 1 and the last .3.

    Raises:
        FitError: no early exit, or weights of another number than exits.
        SourceError: no labels, or samples of another shape than the model expects.

    Source: BranchyNet, Teerapittayanon et al., ICPR 2016, arXiv:1709.01686; MSDNet, Huang et al., ICLR 2018,
    arXiv:1703.09844 (SGD .1, momentum .9, weight decay 1e-4, batch 64, 300 epochs, a tenth at 150 and 225).
    """
    config = configured(USUAL, config, options)
    weights = checked_weights(net, weight_e)

    def loss(logits_nek: Tensor, y_n: Tensor, net: DynamicNet) -> Tensor:
        return weighted_cross_entropy(logits_nek.unbind(1), y_n, weights)

    config = labelled(config, "joint training", weights=weights)
    return train_by_loss(net, source, config, loss, trunk="joint", augment=augment)


def checked_weights(net: DynamicNet, weight_e: Sequence[float] | None) -> tuple[float, ...]:
    """A weight for each exit, 1 where none are given."""
    weights = (1.0,) * net.num_exits if weight_e is None else tuple(map(float, weight_e))
    if len(weights) != net.num_exits or min(weights) < 0 or max(weights) == 0:
        raise FitError(
            f"weights {weights} for {net.num_exits} exits; give one of each, the last exit included, none negative"
        )
    return weights
