"""The two losses of a step: what exits should answer, and how alike they should see.

Shapes: b samples in a batch, k classes. There are e exits, numbered from 0, the last is the full net.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dynext.align.batches import AlignmentBatch
from dynext.align.losses import Term
from dynext.align.projection_heads import ProjectionHeads
from dynext.losses.exits import distillation


class StepLosses(NamedTuple):
    """Both losses, and the first view's projections, e tensors ``[b d]``."""

    classification: Tensor
    alignment: Tensor
    projected_e: list[Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Objective:
    """What exits are trained for, on one batch.

    Args:
        temperature: of distillation, on batches without labels.
        classes: the only classes that exits learn answers for, in order; all without it.
        last_too: whether the last exit is trained too, and so has to answer.
    """

    space: ProjectionHeads
    term: Term
    temperature: float
    classes: tuple[int, ...] | None
    last_too: bool

    def losses(self, batch: AlignmentBatch) -> StepLosses:
        """Classification (mean over views, sum over exits) and alignment (early exits to the other view's last)."""
        projected = [self.space(view.embedded.embedding_e) for view in batch.views]
        y_b = None if batch.y_b is None else self._distinct_labels(batch.y_b)
        pairs = zip(projected, projected[::-1], strict=True)  # one view is its own other
        alignment = [self.term(early_e[:-1], other_e[-1], y_b) for early_e, other_e in pairs]
        classification = [
            self._classification(view.embedded.logits_e, view.target_bk, batch.y_b) for view in batch.views
        ]
        return StepLosses(torch.stack(classification).mean(), torch.stack(alignment).mean(), projected[0])

    def _classification(self, logits_e: Sequence[Tensor], target_bk: Tensor, y_b: Tensor | None) -> Tensor:
        """By labels or by the static net, on samples of the known classes and among these alone."""
        known_b = self._is_known(target_bk.argmax(1) if y_b is None else y_b)
        weight_b = known_b / known_b.mean().clamp_min(1e-9)
        if y_b is not None:
            trained_e = logits_e if self.last_too else logits_e[:-1]
            return torch.stack([self._cross_entropy(logits, y_b, weight_b) for logits in trained_e]).sum()
        target = self._among_known(target_bk)
        early = [
            distillation(self._among_known(logits), target, self.temperature, weight_b) for logits in logits_e[:-1]
        ]
        # The last exit is to stay what it was, in all it knows.
        last = [distillation(logits_e[-1], target_bk, self.temperature)] if self.last_too else []
        return torch.stack([*early, *last]).sum()

    def _cross_entropy(self, logits_bk: Tensor, y_b: Tensor, weight_b: Tensor) -> Tensor:
        position_k = torch.zeros(logits_bk.shape[1], dtype=torch.int64, device=y_b.device)
        if self.classes is None:
            position_k = torch.arange(logits_bk.shape[1], device=y_b.device)
        else:
            position_k[list(self.classes)] = torch.arange(len(self.classes), device=y_b.device)
        return (weight_b * F.cross_entropy(self._among_known(logits_bk), position_k[y_b], reduction="none")).mean()

    def _among_known(self, logits_bk: Tensor) -> Tensor:
        return logits_bk if self.classes is None else logits_bk[:, list(self.classes)]

    def _is_known(self, class_b: Tensor) -> Tensor:
        if self.classes is None:
            return torch.ones_like(class_b, dtype=torch.float32)
        return torch.isin(class_b, torch.tensor(self.classes, device=class_b.device)).float()

    def _distinct_labels(self, y_b: Tensor) -> Tensor:
        """Labels, each sample of an unknown class a class of its own."""
        alone_b = -1 - torch.arange(len(y_b), device=y_b.device)
        return torch.where(self._is_known(y_b) > 0, y_b, alone_b)
