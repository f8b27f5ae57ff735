"""JEI-DNN: exits and the gates that decide to leave, learned together on a frozen net."""

from __future__ import annotations

import copy
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from dynext.data.given import LearnOptions, takes_data
from dynext.errors import FitError
from dynext.fitting import FitConfig, configured
from dynext.losses.exits import gated_exit_loss
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.confidence import FEATURES, Learned, gate_features
from dynext.policy.policy import Policy
from dynext.seeding import seeded
from dynext.train.exit_loop import HeadOutputs, TrainableHeads, check_plain, labelled, train_heads
from dynext.types import Data
from dynext.usual_modes import in_usual_modes

USUAL = FitConfig(batch_size=64)


@in_usual_modes
@takes_data("source")
def jei_dnn(
    net: DynamicNet,
    source: Data,
    config: FitConfig | None = None,
    *,
    price: float = 0.5,
    gate_warmup: float = 0.3,
    **options: Unpack[LearnOptions],
) -> tuple[DynamicNet, Policy]:
    """A copy of ``net`` with its exits trained on labelled samples, the trunk frozen, and learned gates as a policy.

    At first exits learn alone. Then each sample's loss at an exit counts by the probability that the gates send it
    there, and the gates learn to leave where no later exit has a smaller loss plus ``price`` times its cost. By the
    policy a sample leaves where its gate says a half or more; `dx.choose` finds other thresholds.

    Args:
        price: what the whole net's MACs cost, in units of cross-entropy; more means earlier exits.
        gate_warmup: share of the steps in which the gates wait.

    Raises:
        FitError: no early exit, or figures out of range.
        SourceError: no labels, or samples of another shape than the model expects.

    Source: Regol et al., ICLR 2024, arXiv:2310.09163, section 4. Ours takes a step of both levels at once, and its
    gates are linear in max probability, margin and entropy.
    """
    config = configured(USUAL, config, options)
    if price < 0 or not 0 <= gate_warmup <= 1:
        raise FitError(f"price={price}, gate_warmup={gate_warmup}; give 0 or more, and a share in [0, 1]")
    check_plain(net)
    cost_e = torch.tensor(exit_costs(net))

    def loss(outputs: GatedOutputs, y_b: Tensor, done: float) -> Tensor:
        logits_e = [*outputs.heads.own_e, outputs.heads.full_bk]
        loss_be = torch.stack([F.cross_entropy(logits, y_b, reduction="none") for logits in logits_e], dim=1)
        if done < gate_warmup:
            return loss_be[:, :-1].mean(0).sum()
        return gated_exit_loss(loss_be, outputs.gate_be, cost_e.to(loss_be), price)

    student = copy.deepcopy(net)
    gated = GatedHeads(student, config.seed)
    config = labelled(config, "JEI-DNN", price=price, warmup=gate_warmup)
    trained = train_heads(net, student, source, config, loss, module=lambda _: gated)
    policy = Policy(
        confidence=gated.learned(),
        threshold_e=(*(0.5 for _ in net.exits), 0.0),
        temperature_e=(1.0,) * net.num_exits,
        basis="labels",
        note=f"Learned gates leave at a half (JEI-DNN, price {price:g}).",
    )
    return trained, policy


def exit_costs(net: DynamicNet) -> list[float]:
    """MACs of a sample that leaves at each exit, all heads on its way included, as shares of the whole net's."""
    heads = [sum(net.head_macs_e[: e + 1]) for e in range(net.num_exits)]
    return [(trunk + head) / net.trunk_macs_e[-1] for trunk, head in zip(net.trunk_macs_e, heads, strict=True)]


class GatedOutputs(NamedTuple):
    """What heads say of a batch, and with which probability their gates let a sample leave ``[b e - 1]``."""

    heads: HeadOutputs
    gate_be: Tensor


class GatedHeads(nn.Module):
    """Heads with a gate each, which sees what its head says; no gradient goes from the gate to the head."""

    def __init__(self, net: DynamicNet, seed: int) -> None:
        super().__init__()
        self.heads = TrainableHeads(net)
        like = next(net.parameters())
        with seeded(seed):
            self.gates = nn.ModuleList(nn.Linear(len(FEATURES), 1).to(like) for _ in net.exits)

    def forward(self, reduced_e: list[Tensor], full_bk: Tensor) -> GatedOutputs:
        heads = self.heads(reduced_e, full_bk)
        logit_e = [gate(gate_features(own.detach()))[:, 0] for gate, own in zip(self.gates, heads.own_e, strict=True)]
        return GatedOutputs(heads, torch.stack(logit_e, dim=1).sigmoid())

    def learned(self) -> Learned:
        """The gates as plain numbers."""
        gates = [cast(nn.Linear, gate) for gate in self.gates]
        return Learned(weight_e=tuple((*gate.weight[0].tolist(), gate.bias.item()) for gate in gates))
