"""Improved techniques for training adaptive nets: gradients in balance, exits that collaborate, one teacher for all."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from dynext.data.given import LearnOptions, takes_data
from dynext.errors import FitError
from dynext.fitting import FitConfig, FitOptions, configured
from dynext.losses.exits import self_distillation, weighted_cross_entropy
from dynext.net.cascade import cascade
from dynext.net.dynamic_net import DynamicNet
from dynext.train.batches import Augment
from dynext.train.by_loss import train_by_loss
from dynext.train.exit_loop import HeadOutputs, check_joinable, labelled, train_heads
from dynext.types import Data
from dynext.usual_modes import in_usual_modes

USUAL = FitConfig(batch_size=64)


@in_usual_modes
@takes_data("source")
def imta(
    net: DynamicNet,
    source: Data,
    config: FitConfig | None = None,
    *,
    heads: FitConfig | FitOptions | None = None,
    gamma: float = 0.1,
    temperature: float = 1.0,
    augment: Augment | None = None,
    **options: Unpack[LearnOptions],
) -> DynamicNet:
    """A copy of ``net`` trained in two steps: all of it with gradients in balance, then the exits as collaborators.

    First, by ``config``, the sum of all exits' cross-entropies, each stage getting the mean of their gradients
    (`dynext.net.equilibrium`). Then, by ``heads``, on the frozen trunk, exits that are handed what the one before said
    (`dynext.net.cascade`, rule "inline"), taught by labels and by the full net: `dynext.losses.self_distillation`.

    Args:
        config: of the first step.
        heads: of the second step, a config or a mapping of its fields; without it there is none. Give it a checkpoint
            of its own.
        gamma: share of the teacher's part in the second step's loss.
        augment: for the first step; the second trains on cached features, which cannot be augmented.

    Raises:
        FitError: no early exit, or a share outside [0, 1].
        SourceError: no labels, or samples of another shape than the model expects.

    Source: Li et al., ICCV 2019, arXiv:1908.06294; gamma .1 and temperature 1 as in its public script. There the second
    step makes the last classifier anew too; ours keeps it, and its gradients rescale all tensors that are live.
    """
    config = configured(USUAL, config, options)
    if not 0 <= gamma <= 1 or not temperature > 0:
        raise FitError(f"gamma={gamma}, temperature={temperature}; give a share in [0, 1], a positive temperature")
    check_joinable(net)

    def first(logits_nek: Tensor, y_n: Tensor, net: DynamicNet) -> Tensor:
        return weighted_cross_entropy(logits_nek.unbind(1), y_n, [1.0] * net.num_exits)

    config = labelled(config, "IMTA, gradients in balance")
    balanced = train_by_loss(net, source, config, first, trunk="joint", augment=augment, balance=True)
    if heads is None:
        return balanced

    def second(outputs: HeadOutputs, y_b: Tensor, done: float) -> Tensor:
        logits_e = [*outputs.own_e, outputs.full_bk]
        return self_distillation(logits_e, y_b, alpha=gamma, temperature=temperature)

    taught = configured(USUAL, heads, {})
    taught = labelled(taught, "IMTA, collaborating exits", gamma=gamma, temperature=temperature)
    joined = cascade(balanced, "inline", seed=taught.seed)
    return train_heads(balanced, joined, source, taught, second)
