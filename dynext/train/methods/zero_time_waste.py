"""Zero Time Waste: on a frozen net, each exit builds on the answers of those before it, which were not sure enough."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from dynext.data.given import LearnOptions, takes_data
from dynext.fitting import FitConfig, configured
from dynext.net.cascade import cascade
from dynext.net.dynamic_net import DynamicNet
from dynext.train.exit_loop import HeadOutputs, check_joinable, labelled, train_heads
from dynext.types import Data
from dynext.usual_modes import in_usual_modes

USUAL = FitConfig(batch_size=64)


@in_usual_modes
@takes_data("source")
def zero_time_waste(
    net: DynamicNet, source: Data, config: FitConfig | None = None, **options: Unpack[LearnOptions]
) -> DynamicNet:
    """A cascade of ``net`` (`dynext.net.cascade`, rule "stack") with its exits trained on samples, the trunk frozen.

    Loss: the sum of the cross-entropies of what each head says and of what each exit answers, a geometric mean of all
    heads so far. What a head learns from it is its own cross-entropy alone, as heads are detached from each other and
    from the means. The last exit is bit for bit what it was. Samples without labels, such as a bank synthesized from
    the net, are learned from by the full net's probabilities.

    Raises:
        FitError: no early exit.
        SourceError: labels for some samples only, or samples of another shape than the model expects.

    Source: Wolczyk et al., NeurIPS 2021, arXiv:2106.05409. There heads are trained first and means afterwards; ours at
    once, since no gradient goes from one to the other.
    """
    config = configured(USUAL, config, options)
    check_joinable(net)

    def loss(outputs: HeadOutputs, y_b: Tensor, done: float) -> Tensor:
        return torch.stack([F.cross_entropy(logits, y_b) for logits in (*outputs.own_e, *outputs.answer_e)]).sum()

    joined = cascade(net, "stack", seed=config.seed)
    return train_heads(net, joined, source, labelled(config, "Zero Time Waste"), loss, self_taught=True)
