"""How alike exits see, and how well they know classes that they never saw.

Shapes: n samples, k classes, d the size of an embedding. There are e exits, numbered from 0, the last is the full net.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynext.brief import short_repr
from dynext.errors import SourceError


def cka(first_nd: Tensor, second_nd: Tensor) -> float:
    """How alike two embeddings of the same samples are, from 0 to 1 and whatever their rotation and scale: linear CKA.

    >>> z = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    >>> round(cka(z, 2 * z.flip(1) + 1), 6)
    1.0

    Raises:
        SourceError: other numbers of samples, or fewer than two.

    Source: Kornblith et al., ICML 2019, arXiv:1905.00414, eq. 3 with linear kernels.
    """
    if len(first_nd) != len(second_nd) or len(first_nd) < 2:
        raise SourceError(
            f"{len(first_nd)} and {len(second_nd)} samples; give two embeddings of the same samples, 2 at least"
        )
    a, b = (z.double() - z.double().mean(0) for z in (first_nd, second_nd))
    own = (a.T @ a).norm() * (b.T @ b).norm()
    return float((a.T @ b).square().sum() / own) if float(own) > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Accuracy at each exit on classes that were held out of the exits' training, and on the others."""

    __repr__ = short_repr

    zero_shot_e: tuple[float, ...]
    """Samples of held-out classes, answered among these alone."""
    unseen_e: tuple[float, ...]
    """The same samples, answered among all classes."""
    seen_e: tuple[float, ...]
    """Samples of the other classes, answered among all."""

    @property
    def harmonic_e(self) -> tuple[float, ...]:
        """Harmonic mean of ``seen_e`` and ``unseen_e``, the usual measure of generalized zero-shot.

        Source: Xian et al., CVPR 2017, arXiv:1707.00600, section 3.
        """
        pairs = zip(self.seen_e, self.unseen_e, strict=True)
        return tuple(2 * s * u / (s + u) if s + u > 0 else 0.0 for s, u in pairs)


def held_out_accuracy(logits_nek: Tensor, label_n: Tensor, classes: Sequence[int]) -> HeldOut:
    """Every exit's accuracy on the held-out ``classes`` and on all others, from its logits.

    Raises:
        SourceError: no sample of a held-out class, or no other.
    """
    wanted_c = torch.tensor(sorted(set(classes)))
    unseen_n = torch.isin(label_n, wanted_c)
    if not unseen_n.any() or unseen_n.all():
        few = f"{int(unseen_n.sum())} of {len(label_n)} samples"
        raise SourceError(f"{few} are of the held-out classes {sorted(set(classes))}; give samples of both kinds")
    right_ne = logits_nek.argmax(-1) == label_n[:, None]
    among_ne = wanted_c[logits_nek[unseen_n][..., wanted_c].argmax(-1)] == label_n[unseen_n][:, None]
    return HeldOut(
        zero_shot_e=_shares(among_ne), unseen_e=_shares(right_ne[unseen_n]), seen_e=_shares(right_ne[~unseen_n])
    )


def _shares(right_ne: Tensor) -> tuple[float, ...]:
    return tuple(right_ne.double().mean(0).tolist())
