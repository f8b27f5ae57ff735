"""How good a bank of synthesized samples is, as far as the teacher can tell without one real image.

Shapes: n samples looked at, k classes, d features.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynext.brief import short_repr
from dynext.errors import SourceError
from dynext.modules.modes import evaluating, statistics
from dynext.net.dynamic_net import DynamicNet
from dynext.zeroshot.bank import Bank
from dynext.zeroshot.synth.bn_statistics import as_input, bn_distance, has_batch_norm
from dynext.zeroshot.synth.last_layer import answer_and_feature, feature_layer
from dynext.zeroshot.synth.mixture_weights import entropy
from dynext.zeroshot.synth.teacher_student import check_student
from dynext.zeroshot.synth.terms import competition

LOOKED_AT = 2048
"""Samples of a bank that are looked at, spread evenly over it."""


@dataclass(frozen=True, kw_only=True)
class BankQuality:
    """What the teacher makes of a bank. None of it is an accuracy: only real samples tell how much exits learn from
    these.

    Answers are given as distillation sees them, with BatchNorms on the bank's own choice of statistics.
    """

    __repr__ = short_repr

    method: str
    rows: int
    looked_at: int
    bn_loss: float | None
    """`bn_distance`, mean over batches; 0 is a perfect match. ``None`` without BatchNorm."""
    class_balance: float
    """Entropy of the answers' classes, in [0, 1]; 1 is every class alike."""
    classes_seen: int
    num_classes: int
    confidence: float
    """Mean of the teacher's largest probability."""
    diversity: float
    """Mean distance (1 - cosine) of two samples in the teacher's last feature; 0 is one sample over and over."""
    disagreement: float | None
    """Mean Jensen-Shannon divergence of the exits from the teacher, over its most (ln 2); ``None`` without exits."""
    seconds: float
    """What synthesis took."""

    @property
    def rows_per_second(self) -> float | None:
        return self.rows / self.seconds if self.seconds else None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "rows_per_second": self.rows_per_second}

    def __str__(self) -> str:
        speed = "" if self.rows_per_second is None else f", {self.rows_per_second:,.1f} samples a second"
        lines = [
            ("BN loss", "no BatchNorm" if self.bn_loss is None else f"{self.bn_loss:.3f}", "0: the teacher's own"),
            ("class balance", f"{self.class_balance:.3f}", f"{self.classes_seen} of {self.num_classes} classes seen"),
            ("confidence", f"{self.confidence:.3f}", "mean of the teacher's largest probability"),
            ("diversity", f"{self.diversity:.3f}", "0: one sample over and over"),
        ]
        if self.disagreement is not None:
            lines.append(("disagreement", f"{self.disagreement:.3f}", "0: the exits have nothing to learn here"))
        told = "\n".join(f"  {name:<14}{value:>12}   {hint}" for name, value, hint in lines)
        head = f"{self.rows:,} samples by {self.method} in {self.seconds:,.1f} s{speed}; {self.looked_at:,} looked at:"
        return f"{head}\n{told}"


@torch.no_grad()
def quality(bank: Bank, teacher: nn.Module, exits: DynamicNet | None = None) -> BankQuality:
    """Measure ``bank`` by ``teacher``, and, if given, by how far the early exits of a net still are from it there.

    Raises:
        SourceError: samples of another shape than the teacher expects, or exits that are the teacher itself.
    """
    if exits is not None:
        check_student(teacher, exits, bank.spec)
    layer = feature_layer(teacher, bank.spec)
    batches = [_looked(bank, teacher, exits, layer, index) for index in _spread(bank)]
    answer_nk = torch.cat([batch[0] for batch in batches])
    feature_nd = torch.cat([batch[1] for batch in batches])
    if not torch.isfinite(answer_nk).all():
        raise SourceError(
            "the teacher's answers hold NaN or infinity on these samples; look at the samples' normalization"
        )
    share_k = answer_nk.argmax(-1).bincount(minlength=answer_nk.shape[1]).double() / len(answer_nk)
    return BankQuality(
        method=bank.provenance.method,
        rows=len(bank),
        looked_at=len(answer_nk),
        bn_loss=_mean([batch[2] for batch in batches]),
        class_balance=float(entropy(share_k)),
        classes_seen=int((share_k > 0).sum()),
        num_classes=answer_nk.shape[1],
        confidence=float(answer_nk.softmax(-1).amax(-1).mean()),
        diversity=diversity(feature_nd),
        disagreement=_mean([batch[3] for batch in batches]),
        seconds=bank.provenance.seconds,
    )


def diversity(feature_nd: Tensor) -> float:
    """Mean of 1 - cosine over all pairs of different samples; 0 for a single sample."""
    n = len(feature_nd)
    if n < 2:
        return 0.0
    unit_nd = F.normalize(feature_nd.double(), dim=1)
    # The square of the sum holds every pair's cosine, and each sample's with itself.
    cosines = unit_nd.sum(0).square().sum() - unit_nd.square().sum()
    return max(0.0, 1 - float(cosines) / (n * (n - 1)))


def _spread(bank: Bank) -> list[Tensor]:
    index = torch.linspace(0, len(bank) - 1, min(LOOKED_AT, len(bank))).round().long()
    # Parts of one size: a last batch of one sample would have no statistics.
    return list(index.tensor_split(-(-len(index) // bank.batch_size)))


def _looked(
    bank: Bank, teacher: nn.Module, exits: DynamicNet | None, layer: Any, index: Tensor
) -> tuple[Tensor, Tensor, float | None, float | None]:
    """Answers, features, `bn_distance` and disagreement of one batch."""
    x = as_input(teacher, bank.take(index).x)
    with evaluating(teacher), statistics(teacher, bank.bn):
        answer_bk, feature_bd = answer_and_feature(teacher, layer, x)
    distance = float(bn_distance(teacher, x)) if has_batch_norm(teacher) else None
    if exits is None:
        return answer_bk.float().cpu(), feature_bd.float().cpu(), distance, None
    with evaluating(exits), statistics(exits.staged, bank.bn):
        exits_bek = exits.all_exits(x)[:, :-1]
    apart = float(competition(exits_bek, answer_bk).mean()) / float(torch.tensor(2.0).log())
    return answer_bk.float().cpu(), feature_bd.float().cpu(), distance, apart


def _mean(value: list[Any]) -> float | None:
    return None if value[0] is None else float(sum(value) / len(value))
