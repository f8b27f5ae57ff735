"""JEI-DNN: exits and the gates that decide to leave, learned together on a frozen net."""

from __future__ import annotations

import copy
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynext.errors import FitError
from dynext.fitting import FitConfig
from dynext.losses.exits import exit_probabilities, gate_targets
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.confidence import FEATURES, Learned, gate_features
from dynext.policy.policy import Policy
from dynext.seeding import seeded
from dynext.train.exit_loop import Heads, Heard, check_shape, labelled, train_heads
from dynext.types import Source


def jei_dnn(
    net: DynamicNet,
    source: Source,
    config: FitConfig,
    *,
    price: float = 0.5,
    warmup: float = 0.3,
    batch_size: int = 64,
) -> tuple[DynamicNet, Policy]:
    """A copy of ``net`` whose exits were trained on labelled samples, the trunk frozen, and gates for it, as a policy.

    At first exits learn alone. Then each sample's loss at an exit counts by the probability that the gates send it
    there, and the gates learn to leave where no later exit has a smaller loss plus ``price`` times its cost. By the
    policy a sample leaves where its gate says a half or more; `dx.choose` finds other thresholds.

    Args:
        price: what the whole net's MACs cost, in units of cross-entropy; more means earlier exits.
        warmup: share of the steps in which the gates wait.

    Raises:
        FitError: no early exit, or figures out of range.
        SourceError: no labels, or samples of another shape than the model expects.

    Source: Regol et al., ICLR 2024, arXiv:2310.09163, section 4. Ours takes a step of both levels at once, and its
    gates are linear in max probability, margin and entropy.
    """
    if price < 0 or not 0 <= warmup <= 1:
        raise FitError(f"price={price}, warmup={warmup}; give 0 or more, and a share in [0, 1]")
    check_shape(source, net)
    cost_e = torch.tensor(costs(net))

    def loss(seen: Gated, y_b: Tensor, done: float) -> Tensor:
        logits_e = [*seen.heard.own_e, seen.heard.full_bk]
        loss_be = torch.stack([F.cross_entropy(logits, y_b, reduction="none") for logits in logits_e], dim=1)
        if done < warmup:
            return loss_be[:, :-1].mean(0).sum()
        return gated_loss(loss_be, seen.gate_be, cost_e.to(loss_be), price)

    student = copy.deepcopy(net)
    gated = GatedHeads(student, config.seed)
    config = labelled(config, "JEI-DNN", price=price, warmup=warmup)
    trained = train_heads(net, student, source, config, loss, batch_size=batch_size, module=lambda _: gated)
    policy = Policy(
        confidence=gated.learned(),
        threshold_e=(*(0.5 for _ in net.exits), 0.0),
        temperature_e=(1.0,) * net.num_exits,
        basis="labels",
        note=f"Learned gates leave at a half (JEI-DNN, price {price:g}).",
    )
    return trained, policy


def gated_loss(loss_be: Tensor, gate_be: Tensor, cost_e: Tensor, price: float) -> Tensor:
    """The exits' losses where the gates send samples, and the gates' on what they should have said; sums of sample
    means.
    """
    sent_be = exit_probabilities(gate_be.detach())[:, :-1]
    right_be = gate_targets(loss_be, cost_e, price)
    return (sent_be * loss_be[:, :-1]).mean(0).sum() + F.binary_cross_entropy(gate_be, right_be, reduction="none").mean(
        0
    ).sum()


def costs(net: DynamicNet) -> list[float]:
    """MACs of a sample that leaves at each exit, all heads on its way included, as shares of the whole net's."""
    heads = [sum(net.head_macs_e[: e + 1]) for e in range(net.num_exits)]
    return [(trunk + head) / net.trunk_macs_e[-1] for trunk, head in zip(net.trunk_macs_e, heads, strict=True)]


class Gated(NamedTuple):
    """What heads say of a batch, and their gates ``[b e - 1]``."""

    heard: Heard
    gate_be: Tensor


class GatedHeads(nn.Module):
    """Heads with a gate each, which sees what its head says but does not teach it."""

    def __init__(self, net: DynamicNet, seed: int) -> None:
        super().__init__()
        self.heads = Heads(net)
        like = next(net.parameters())
        with seeded(seed):
            self.gates = nn.ModuleList(nn.Linear(len(FEATURES), 1).to(like) for _ in net.exits)

    def forward(self, reduced_e: list[Tensor], full_bk: Tensor) -> Gated:
        heard = self.heads(reduced_e, full_bk)
        said_e = [gate(gate_features(own.detach()))[:, 0] for gate, own in zip(self.gates, heard.own_e, strict=True)]
        return Gated(heard, torch.stack(said_e, dim=1).sigmoid())

    def learned(self) -> Learned:
        """The gates as plain numbers."""
        gates = [cast(nn.Linear, gate) for gate in self.gates]
        return Learned(weight_e=tuple((*gate.weight[0].tolist(), gate.bias.item()) for gate in gates))
