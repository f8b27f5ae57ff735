"""What is recorded while exits are aligned: do projections collapse, and does alignment work against classification?

Shapes: b samples, d the size of a projection. There are e exits, numbered from 0, the last is the full net.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SNAPSHOTS = 20
"""How many snapshots are taken, spread over a run."""

COLLAPSED_SPREAD, COLLAPSED_RANK = 0.1, 1.5
"""An exit below either has collapsed: a healthy spread is near 1, and a line has rank 1."""

MIN_RANKED_SAMPLES = 4
"""Of fewer samples the rank says nothing: two always lie on a line."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The record of one step: both losses, and how far each exit's projections of the batch spread.

    The names of its fields stand in checkpoints and in saved nets.
    """

    step: int
    alignment: float
    classification: float
    spread_e: tuple[float, ...]
    rank_e: tuple[float, ...]
    rows: int
    """Samples of the batch."""
    agreement: float
    """Cosine between the gradients of alignment and classification in what both train; negative is a conflict."""


@dataclass(eq=False)
class Monitor:
    """The snapshots so far, and on how many steps the aligned term was left out."""

    snapshots: list[Snapshot] = field(default_factory=list)
    dropped: int = 0

    def combine(
        self, classification: Tensor, alignment: Tensor, weight: float, shared: Sequence[Tensor], *, drop: bool
    ) -> tuple[Tensor, float]:
        """Classification plus ``weight`` times alignment, and the cosine of their gradients in ``shared``.

        With ``drop``, classification alone where the cosine is negative.
        """
        cosine = agreement(alignment, classification, shared)
        if drop and cosine < 0:
            self.dropped += 1
            return classification, cosine
        return classification + weight * alignment, cosine

    def state(self) -> dict[str, Any]:
        """JSON, for a checkpoint."""
        return {"looks": [asdict(snapshot) for snapshot in self.snapshots], "dropped": self.dropped}

    def resume(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        self.snapshots = [
            Snapshot(**{**kept, "spread_e": tuple(kept["spread_e"]), "rank_e": tuple(kept["rank_e"])})
            for kept in state["looks"]
        ]
        self.dropped = int(state["dropped"])


@torch.no_grad()
def spread(z_bd: Tensor) -> float:
    """Standard deviation of normalized samples, mean over dimensions, times sqrt(d): 1 on a sphere, 0 in a point.

    Source: SimSiam's collapse check, Chen & He, CVPR 2021, arXiv:2011.10566, figure 2 (there it is 1/sqrt(d) on a
    sphere). lightly's ``std_of_l2_normalized`` divides by b - 1, which is 1.4 times as much in a batch of two.
    """
    z = F.normalize(z_bd.double(), dim=-1)
    return float(z.std(0, correction=0).mean() * z.shape[1] ** 0.5)


@torch.no_grad()
def effective_rank(z_bd: Tensor) -> float:
    """How many dimensions the samples fill: exp of the entropy of the singular values' shares, the mean sample taken
    off.

    Source: RankMe, Garrido et al., ICML 2023, arXiv:2210.02885, eq. 1. Ours is centered: a point far from zero has
    rank 0, not 1.
    """
    values = torch.linalg.svdvals((z_bd - z_bd.mean(0)).double())
    if float(values.sum()) <= 1e-9 * max(float(z_bd.abs().max()), 1e-30) * z_bd.numel() ** 0.5:
        return 0.0
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())


def take_snapshot(
    step: int, classification: Tensor, alignment: Tensor, projected_e: Sequence[Tensor], agreement: float
) -> Snapshot:
    """The record of one step; ``projected_e`` are e tensors ``[b d]``."""
    return Snapshot(
        step=step,
        alignment=float(alignment.detach()),
        classification=float(classification.detach()),
        spread_e=tuple(map(spread, projected_e)),
        rank_e=tuple(map(effective_rank, projected_e)),
        rows=len(projected_e[0]),
        agreement=agreement,
    )


def collapsed(snapshot: Snapshot) -> tuple[bool, ...]:
    """Which exits' projections are all but one point or one line."""
    least = COLLAPSED_RANK if snapshot.rows >= MIN_RANKED_SAMPLES else 0.0
    pairs = zip(snapshot.spread_e, snapshot.rank_e, strict=True)
    return tuple(spread < COLLAPSED_SPREAD or rank < least for spread, rank in pairs)


def agreement(first: Tensor, second: Tensor, parameters: Sequence[Tensor]) -> float:
    """Cosine between the gradients of two losses in ``parameters``; 0 where one of them has none. The graph is kept."""
    first_grads, second_grads = (
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) if loss.requires_grad else ()
        for loss in (first, second)
    )
    pairs = [(a, b) for a, b in zip(first_grads, second_grads, strict=False) if a is not None and b is not None]
    dot = sum(float((a * b).sum()) for a, b in pairs)
    norm = (_squares(first_grads) * _squares(second_grads)) ** 0.5
    return dot / norm if norm > 0 else 0.0


def _squares(gradients: Sequence[Tensor | None]) -> float:
    return sum(float(g.square().sum()) for g in gradients if g is not None)
