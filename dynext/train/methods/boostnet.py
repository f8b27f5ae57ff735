"""Boosted dynamic nets: each exit corrects the sum of those before it."""

from __future__ import annotations

from functools import partial

from torch import Tensor
from typing_extensions import Unpack

from dynext.fitting import FitConfig, FitOptions, configured
from dynext.losses.exits import weighted_cross_entropy
from dynext.net.cascade import boost, cascade
from dynext.net.dynamic_net import DynamicNet
from dynext.train.batches import Augment, BatchSampler
from dynext.train.exit_loop import EveryExit, check_joinable, labelled, train_whole
from dynext.types import Source
from dynext.usual_modes import in_usual_modes

USUAL = FitConfig(batch_size=64)


@in_usual_modes
def boostnet(
    net: DynamicNet,
    source: Source,
    config: FitConfig | None = None,
    *,
    augment: Augment | None = None,
    **options: Unpack[FitOptions],
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
    batches = BatchSampler.of(source, net, augment)

    def loss(logits_e: list[Tensor], y_b: Tensor, done: float) -> Tensor:
        return weighted_cross_entropy(boosted(logits_e), y_b, [1.0] * len(logits_e))

    trained = train_whole(net, batches, labelled(config, "BoostNet"), partial(EveryExit, balance=True), loss)
    return cascade(trained, "boost")


def boosted(logits_e: list[Tensor]) -> list[Tensor]:
    """Each exit's answer ``[b k]``: its head's logits as a correction of the answer before."""
    answer_e: list[Tensor] = []
    for logits in logits_e:
        answer_e.append(boost(logits, answer_e))
    return answer_e
