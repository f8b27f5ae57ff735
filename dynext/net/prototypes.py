"""Classes as vectors: prototypes from a few examples, at every exit, without training.

Shapes: n samples, k classes, d the size of an embedding, which differs from exit to exit. There are e exits, numbered
from 0, the last is the full net.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dynext.brief import short_repr
from dynext.errors import SourceError
from dynext.seeding import generator
from dynext.usual_modes import in_usual_modes

SCALE = 10.0
"""What cosines are multiplied by to be logits; temperatures are calibrated on top of it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prototypes:
    """A vector for each class at each exit (e tensors ``[k d]``), and what is taken off embeddings first (``[d]``)."""

    __repr__ = short_repr

    vector_e: tuple[Tensor, ...]
    center_e: tuple[Tensor, ...]

    @property
    def num_classes(self) -> int:
        return len(self.vector_e[0])

    def logits(self, embedding_e: Sequence[Tensor]) -> Tensor:
        """Every exit's answer ``[n e k]`` to e tensors ``[n d]``: `SCALE` times the cosine to each class's vector."""
        exits = zip(embedding_e, self.vector_e, self.center_e, strict=True)
        return torch.stack([cosine_logits(f, vector, center) for f, vector, center in exits], dim=1)


@in_usual_modes
def prototypes(
    embedding_e: Sequence[Tensor],
    label_n: Tensor,
    *,
    num_classes: int | None = None,
    center_on: Sequence[Tensor] | None = None,
) -> Prototypes:
    """A class's vector at each exit: the mean direction of its examples there.

    Args:
        embedding_e: of the examples, e tensors ``[n d]``.
        label_n: their classes, from 0.
        num_classes: by default one more than the largest label.
        center_on: embeddings of further samples, unlabelled, whose mean is taken off; by default that of the examples.

    Raises:
        SourceError: a class without an example, labels of another number than samples, or NaN.

    Source: Snell et al., NeurIPS 2017, arXiv:1703.05175, with SimpleShot's centering and normalization, Wang et al.
    2019, arXiv:1911.04623 ("CL2N"; there the center is the training set's).
    """
    if len(label_n) != len(embedding_e[0]):
        raise SourceError(f"{len(label_n)} labels for {len(embedding_e[0])} samples; give one each")
    k = int(label_n.max()) + 1 if num_classes is None else num_classes
    for given in (embedding_e, center_on or ()):
        if not all(f.isfinite().all() for f in given):
            raise SourceError(
                "an embedding holds NaN or infinite numbers; leave out the sample that it is of, or mend it"
            )
    center_e = tuple(f.mean(0) for f in (embedding_e if center_on is None else center_on))
    directions = [F.normalize(f - center, dim=-1) for f, center in zip(embedding_e, center_e, strict=True)]
    return Prototypes(vector_e=tuple(class_means(f, label_n, k) for f in directions), center_e=center_e)


def class_means(embedding_nd: Tensor, label_n: Tensor, num_classes: int) -> Tensor:
    """The mean embedding of each class ``[k d]``; gradients flow through it.

    >>> class_means(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([0, 0, 1]), 2).tolist()
    [[1.0], [5.0]]

    Raises:
        SourceError: a class without an example, or a label out of range.
    """
    if len(label_n) and not 0 <= int(label_n.min()) <= int(label_n.max()) < num_classes:
        raise SourceError(f"labels {int(label_n.min())} to {int(label_n.max())} for {num_classes} classes from 0")
    member_nk = F.one_hot(label_n, num_classes).to(embedding_nd)
    count_k = member_nk.sum(0)
    missing = (count_k == 0).nonzero()[:, 0].tolist()
    if missing:
        raise SourceError(f"no example of class {', '.join(map(str, missing))}; a prototype needs one at least")
    return (member_nk / count_k).T @ embedding_nd


def cosine_logits(embedding_nd: Tensor, vector_kd: Tensor, center_d: Tensor | float = 0.0) -> Tensor:
    """`SCALE` times the cosine between each embedding, less the center, and each class's vector ``[n k]``."""
    return SCALE * F.linear(F.normalize(embedding_nd - center_d, dim=-1), F.normalize(vector_kd, dim=-1))


def draw_shots(label_n: Tensor, shots: int, *, seed: int = 0) -> Tensor:
    """Which samples are the examples ``[k * shots]``: ``shots`` of each class that occurs, drawn without replacement.

    Raises:
        SourceError: a class with fewer samples.
    """
    draw, drawn = generator(seed), []
    for label in label_n.unique().tolist():
        members = (label_n == label).nonzero()[:, 0]
        if len(members) < shots:
            raise SourceError(
                f"{len(members)} samples of class {label}, {shots} asked for; give more samples or fewer shots"
            )
        drawn.append(members[torch.randperm(len(members), generator=draw)[:shots]])
    return torch.cat(drawn)
