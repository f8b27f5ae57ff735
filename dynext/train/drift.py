"""Drift: how far a trained net's last exit has gone from the static net it came from, and a guard that bounds it.

Measured on samples that are not trained on. Agreement on synthesized samples is no accuracy: such samples lie nearer to
the borders between classes than real ones do.

Shapes: b samples in a batch, n samples, k classes. There are e exits, numbered from 0, the last is the full net.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynext.errors import FitError
from dynext.modules.modes import evaluating, statistics
from dynext.net.dynamic_net import DynamicNet
from dynext.net.features import same_function
from dynext.seeding import generator
from dynext.train.frozen_teacher import BesideMode, Guide
from dynext.types import Source

BATCH = 256
"""Held-out samples a batch; with ``bn="batch"`` these are what a batch's statistics are taken from."""

HELD_OUT = 512
"""Most samples on which the drift is measured; an eighth of the source where that is less."""


def split_held_out(source: Source, seed: int) -> tuple[Tensor, Tensor]:
    """Which samples of ``source`` to train on ``[n]``, and which to hold out for the drift, drawn at random."""
    order_n = torch.randperm(len(source), generator=generator(seed))
    num_held_out = min(HELD_OUT, max(len(source) // 8, 1))
    return order_n[num_held_out:], order_n[:num_held_out]


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Exits compared with the teacher on the same samples."""

    agreement_e: tuple[float, ...]
    """Share of the samples that each exit answers like the teacher; the last exit's is what must stay high."""
    kl: float
    """KL(teacher || last exit), nats a sample, both at temperature 1."""
    rows: int
    """Samples compared on."""

    @property
    def agreement(self) -> float:
        """The last exit's."""
        return self.agreement_e[-1]

    def __str__(self) -> str:
        return f"last exit agrees on {self.agreement:.2%} of {self.rows:,} samples, KL {self.kl:.2g}"


def measure_drift(net: DynamicNet, teacher: nn.Module, source: Source, *, bn: BesideMode = "frozen") -> Drift:
    """Compare every exit of ``net`` with ``teacher`` on the samples of ``source``; neither is changed.

    Args:
        bn: ``"frozen"`` compares them as they are used. ``"batch"`` as `dynext.train.frozen_teacher` says, for samples
            that are unlike the training set.
    """
    return drift_of(net, Guide.of(teacher, bn), (batch.x for batch in source))


@torch.no_grad()
def drift_of(net: DynamicNet, guide: Guide, batches: Iterable[Tensor]) -> Drift:
    """`measure_drift` on batches ``x [b ...]``, with a guide that exists already."""
    like = next(net.parameters())
    same_e = torch.zeros(net.num_exits, dtype=torch.float64)
    divergence, num_samples = 0.0, 0
    for batch in batches:
        x = batch.to(like)
        with evaluating(net), guide.beside(net.staged, x) as teacher:
            logits_bek = net.all_exits(x)
        same_e += (logits_bek.argmax(-1) == teacher.logits.argmax(-1, keepdim=True)).double().sum(0).cpu()
        last, truth = (logits.double().log_softmax(-1) for logits in (logits_bek[:, -1], teacher.logits))
        divergence += float(F.kl_div(last, truth, reduction="sum", log_target=True))
        num_samples += len(x)
    return Drift(agreement_e=tuple((same_e / num_samples).tolist()), kl=divergence / num_samples, rows=num_samples)


@torch.no_grad()
def lost_by_drift(net: DynamicNet, teacher: nn.Module, source: Source) -> float:
    """Accuracy that the last exit loses in the ``teacher``'s place, by the teacher's own probabilities.

    Mean over the samples of ``source`` of p(teacher's answer) - p(last exit's answer), as `dynext.choose` weighs an
    early exit's; 0 where the net still is the teacher.
    """
    if same_function(net, teacher):
        return 0.0
    like = next(net.parameters())
    lost = 0.0
    with evaluating(net), evaluating(teacher), statistics(net.staged, source.bn), statistics(teacher, source.bn):
        for batch in source:
            x = batch.x.to(like)
            probability_bk = teacher(x).double().softmax(-1)
            answer_b = net(x).argmax(-1, keepdim=True)
            lost += float((probability_bk.amax(-1, keepdim=True) - probability_bk.gather(1, answer_b)).sum())
    return lost / len(source)


@dataclass(frozen=True, kw_only=True)
class DriftCheck:
    """One measurement of the drift during training."""

    step: int
    drift: Drift
    rate: float
    """Share of the trunk's learning rate from here on."""
    restored: bool
    """Whether the net had drifted too far and was put back to the last state that had not."""


class DriftGuard:
    """Keeps the last exit near its teacher: a net that drifted too far is put back, and learns on at half the rate.

    The rate is the trunk's, and is for the training loop to heed.

    Args:
        held_out: samples ``[n ...]`` that are not trained on.
        max_drift: share of them that the last exit may answer unlike the teacher.

    Raises:
        FitError: the net is too far from the teacher already.
    """

    def __init__(self, net: DynamicNet, guide: Guide, held_out: Tensor, max_drift: float) -> None:
        self.net, self.guide, self.max_drift = net, guide, max_drift
        self.batches = held_out.split(BATCH)
        self.rate = 1.0
        self.checks: list[DriftCheck] = []
        self.kept: dict[str, Tensor] = {}
        if not self.check(0):
            raise FitError(
                f"the last exit agrees with the teacher on {self.checks[0].drift.agreement:.2%} of the held-out "
                f"samples before any training, max_drift={max_drift} wants {1 - max_drift:.2%}; give the teacher that "
                f"the net was split from, or a larger max_drift"
            )

    def check(self, step: int) -> bool:
        """Measure the drift: keep this state if it is near enough, else go back to the one that was kept last.

        Returns whether it was near enough.
        """
        drift = drift_of(self.net, self.guide, self.batches)
        near = drift.agreement >= 1 - self.max_drift - 1e-9
        if near:
            self.kept = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
        elif self.kept:
            self.net.load_state_dict(self.kept)
            self.rate /= 2
        self.checks.append(DriftCheck(step=step, drift=drift, rate=self.rate, restored=not near))
        return near

    def state(self) -> dict[str, Any]:
        """What a resumed run must know; plain containers and tensors."""
        return {"rate": self.rate, "kept": self.kept, "checks": [asdict(check) for check in self.checks]}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.rate, self.kept = state["rate"], state["kept"]
        self.checks = [DriftCheck(**{**check, "drift": Drift(**check["drift"])}) for check in state["checks"]]
