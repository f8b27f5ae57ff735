"""Boosted dynamic nets: each exit corrects the sum of those before it."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from dynext.fitting import FitConfig
from dynext.losses.exits import weighted_cross_entropy
from dynext.net.cascade import boost, cascade
from dynext.net.dynamic_net import DynamicNet
from dynext.train.exit_loop import Augment, BatchSampler, EveryExit, check_joinable, labelled, train_whole
from dynext.types import Source


def boostnet(
    net: DynamicNet,
    source: Source,
    config: FitConfig,
    *,
    batch_size: int = 64,
    augment: Augment | None = None,
) -> DynamicNet:
    """A cascade of ``net`` (`dynext.cascade`, rule "boost"), trunk and exits trained together on labelled samples.

    Loss: the sum of the cross-entropies of ``F_n = b_n + stopgrad(F_{n-1}) / 2``, b_n what head n itself says, the last
    exit included, with gradients in balance (`dynext.net.equilibrium`).

    Raises:
        FitError: no early exit.
        SourceError: no labels, or samples of another shape than the model expects.

    Source: Yu et al., AAAI 2023, arXiv:2211.16726. Ours draws one batch a step for all exits; there each exit has its
    own.
    """
    check_joinable(net)
    rows = BatchSampler.of(source, net, augment)

    def loss(logits_e: list[Tensor], y_b: Tensor, done: float) -> Tensor:
        return weighted_cross_entropy(boosted(logits_e), y_b, [1.0] * len(logits_e))

    module = partial(EveryExit, balance=True)
    trained = train_whole(net, rows, labelled(config, "BoostNet"), module, loss, batch_size=batch_size)
    return cascade(trained, "boost")


def boosted(logits_e: list[Tensor]) -> list[Tensor]:
    """What each exit answers when it corrects the one before."""
    answer_e: list[Tensor] = []
    for logits in logits_e:
        answer_e.append(boost(logits, answer_e))
    return answer_e
