"""The space in which exits are compared: a training-only head for each exit, and the final classifier reused there.

Shapes: b samples, n samples, k classes, d the size of an embedding or a projection. There are e exits, numbered from 0,
the last is the full net.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynext.align.losses import TO_FEATURES, Loss, Term, loss_name
from dynext.errors import FitError, SourceError
from dynext.modules.modes import evaluating
from dynext.net.dynamic_net import DynamicNet
from dynext.net.embeddings import Embeddings, embedding_sizes
from dynext.net.last_layer import last_linear
from dynext.net.prototypes import class_means
from dynext.seeding import seeded


class ProjectionHeads(nn.Module):
    """Each exit's embedding ``[b d]`` into one space ``[b d]``, by lightly's projection and prediction heads.

    A net needs none of them to run; they are kept beside the net for those who want classes at an early exit that it
    has never seen. For the losses with a stop-gradient the space is that of the last exit's features, each dimension
    standardized: nothing could train a head there. For the others the last exit has a head as well.
    """

    def __init__(self, sizes: Sequence[int], loss: Loss | Term, *, hidden: int = 256, size: int = 128) -> None:
        super().__init__()
        *early, final = sizes
        self.loss: Loss | Term = loss
        self.sizes = tuple(sizes)
        self.size = final if loss in TO_FEATURES else size
        self.early = cast("list[nn.Module]", nn.ModuleList(_head(loss, d, hidden, self.size) for d in early))
        self.final: nn.Module = (
            nn.BatchNorm1d(final, affine=False) if loss in TO_FEATURES else _head(loss, final, hidden, size)
        )

    @classmethod
    def of(
        cls, net: DynamicNet, loss: Loss | Term, *, hidden: int = 256, size: int = 128, seed: int = 0
    ) -> ProjectionHeads:
        """Untrained heads for the exits of ``net``."""
        with seeded(seed):
            return cls(embedding_sizes(net), loss, hidden=hidden, size=size).to(next(net.parameters()))

    def forward(self, embedding_e: Sequence[Tensor]) -> list[Tensor]:
        """Every exit's projection, e tensors ``[b d]``, in the mode that the heads are in."""
        *early, final = embedding_e
        return [*(head(f) for head, f in zip(self.early, early, strict=True)), self.final(final)]

    @torch.no_grad()
    def project(self, embeddings: Embeddings) -> Embeddings:
        """The same samples with projections in the place of embeddings."""
        like = next(self.early[0].parameters())
        with evaluating(self):
            projected = self([f.to(like) for f in embeddings.embedding_e])
        return Embeddings(
            embedding_e=tuple(z.float().cpu() for z in projected),
            logits_nek=embeddings.logits_nek,
            label_n=embeddings.label_n,
        )

    @torch.no_grad()
    def class_vectors(self, net: DynamicNet) -> Tensor:
        """The final classifier's class vectors in this space ``[k d]``: what it weighs each standardized feature by.

        Raises:
            FitError: the space is not that of the last exit's features.
        """
        if not isinstance(self.final, nn.BatchNorm1d) or self.final.running_var is None:
            raise FitError(
                f"heads of loss {loss_name(self.loss)!r} stand between the last exit's features and the space, so that "
                f"the classifier's vectors mean nothing there; use prototypes of the final exit (final_prototypes), or "
                f"one of {', '.join(TO_FEATURES)}"
            )
        return last_linear(net).weight * (self.final.running_var + self.final.eps).sqrt()


def final_prototypes(projected: Embeddings, num_classes: int) -> Tensor:
    """The mean direction ``[k d]`` of the samples that the full net itself takes for a class; no label is looked at.

    Args:
        projected: `ProjectionHeads.project` of unlabelled samples.

    Raises:
        SourceError: a class that the full net takes no sample for.
    """
    answer_n = projected.logits_nek[:, -1].argmax(-1)
    try:
        return class_means(F.normalize(projected.embedding_e[-1], dim=-1), answer_n, num_classes)
    except SourceError as error:
        raise SourceError(f"the full net finds {error}; give more unlabelled samples") from error


def _head(loss: Loss | Term, in_size: int, hidden: int, size: int) -> nn.Module:
    """lightly's head for the loss; SimSiam's projection has its prediction behind it, the control is linear."""
    from lightly.models.modules import heads

    if loss == "cosine":
        projection = heads.SimSiamProjectionHead(in_size, hidden, size)
        return nn.Sequential(projection, heads.SimSiamPredictionHead(size, max(hidden // 4, 8), size))
    if loss == "barlow":
        return heads.BarlowTwinsProjectionHead(in_size, hidden, size)
    if loss == "vicreg":
        return heads.VICRegProjectionHead(in_size, hidden, size)
    if loss == "l2":
        return heads.ProjectionHead([(in_size, size, None, None)])
    return heads.SimCLRProjectionHead(in_size, hidden, size)
