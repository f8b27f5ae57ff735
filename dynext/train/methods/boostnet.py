"""Boosted dynamic nets: each exit corrects the sum of those before it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import Unpack

from dynext.data.given import LearnOptions, takes_data
from dynext.fitting import FitConfig, configured
from dynext.losses.exits import weighted_cross_entropy
from dynext.net.cascade import boost, cascade
from dynext.net.dynamic_net import DynamicNet
from dynext.train.batches import Augment
from dynext.train.by_loss import train_by_loss
from dynext.train.exit_loop import check_joinable, labelled
from dynext.types import Data
from dynext.usual_modes import in_usual_modes

USUAL = FitConfig(batch_size=64)


@in_usual_modes
@takes_data("source")
def boostnet(
    net: DynamicNet,
    source: Data,
    config: FitConfig | None = None,
    *,
    augment: Augment | None = None,
    **options: Unpack[LearnOptions],
) -> DynamicNet:
    """A cascade of ``net`` (`dynext.net.cascade`, rule "boost"), trunk and exits trained together on labelled samples.

    Loss: the sum of the cross-entropies of ``F_n = b_n + stopgrad(F_{n-1}) / 2``, b_n what head n itself says, the last
    exit included, with gradients in balance (`dynext.net.equilibrium`).

    Raises:
        FitError: no early exit.
        SourceError: no labels, or samples of another shape than the model expects.

    Source: Yu et al., AAAI 2023, arXiv:2211.16726. Ours draws one batch a step for all exits; there each exit has its
    own.
    """
    config = configured(USUAL, config, options)
    check_joinable(net)
    config = labelled(config, "BoostNet")
    trained = train_by_loss(net, source, config, of_boosted, trunk="joint", augment=augment, balance=True)
    return cascade(trained, "boost")


def of_boosted(logits_nek: Tensor, y_n: Tensor, net: DynamicNet) -> Tensor:
    """The sum of the cross-entropies of what each exit answers on top of those before it."""
    return weighted_cross_entropy(boosted(logits_nek.unbind(1)), y_n, [1.0] * net.num_exits)


def boosted(logits_e: Sequence[Tensor]) -> list[Tensor]:
    """Each exit's answer ``[b k]``: its head's logits as a correction of the answer before."""
    answer_e: list[Tensor] = []
    for logits in logits_e:
        answer_e.append(boost(logits, answer_e))
    return answer_e
