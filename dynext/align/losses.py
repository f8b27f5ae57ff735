"""How unlike the exits' projected embeddings are: one term a published loss, lightly's wherever lightly has it.

Shapes: b samples, d the size of a projection, m exits of which two samples' projections are compared. There are e
exits, numbered from 0, the last is the full net. All terms are sums over the early exits and means over samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dynext.errors import FitError
from dynext.plugins import identity, reference

Loss = Literal["cosine", "ntxent", "barlow", "vicreg", "selfcon", "l2"]

Term = Callable[[Sequence[Tensor], Tensor, "Tensor | None"], Tensor]
"""``term(early_e, final_bd, y_b)``: e - 1 tensors ``[b d]``, the last exit's, labels for the loss that takes some.

It gives one number, the sum over early exits and mean over samples. One of one's own may stand wherever a loss's name
is taken: all exits then have a projection head (SimCLR's), the last one too, so that the term itself has to keep them
from collapsing onto a point (by negatives, variances, or ``final_bd.detach()``)."""

TO_FEATURES: tuple[Loss, ...] = ("cosine", "l2")
"""Losses with a stop-gradient: they pull early exits towards the last exit's own features, and nothing else moves."""

WEIGHTS: dict[Loss, float] = {
    "cosine": 1.0,
    "ntxent": 1.0,
    "barlow": 0.02,
    "vicreg": 0.04,
    "selfcon": 1.0,
    "l2": 1.0,
}
"""What a term counts beside classification: about as much as it, by the terms' sizes before training."""


def term_of(loss: Loss | Term, *, temperature: float = 0.1) -> Term:
    """The term by its name, or one's own, checked.

    ``"cosine"``: negative cosine of the early side's prediction to the last exit, through which no gradient flows
    (SimSiam, Chen & He, CVPR 2021, arXiv:2011.10566, eq. 1). ``"ntxent"``: SimCLR's, Chen et al., ICML 2020,
    arXiv:2002.05709, eq. 1. ``"barlow"``: Barlow Twins, Zbontar et al., ICML 2021, arXiv:2103.03230, eq. 1.
    ``"vicreg"``: Bardes et al., ICLR 2022, arXiv:2105.04906, eq. 6. ``"selfcon"``: `self_contrastive`. ``"l2"``: the
    control, squared distance through linear adapters, no gradient through the last exit (FitNets' hints, Romero et al.,
    ICLR 2015, arXiv:1412.6550, eq. 3, averaged over dimensions). Where a paper compares two views with one net, ours
    compares two exits.

    Args:
        temperature: of ``"ntxent"`` and ``"selfcon"``.

    Raises:
        FitError: no such loss, or a temperature that is not positive.
    """
    if callable(loss):
        return of_two_or_more(_one_number(loss))
    from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss, VICRegLoss  # seconds to import

    check_loss(loss, temperature)
    if loss == "selfcon":
        return of_two_or_more(lambda early, final, y: self_contrastive(torch.stack([*early, final]), temperature, y))
    pair: Callable[[Tensor, Tensor], Tensor] = {
        "cosine": NegativeCosineSimilarity(),
        "ntxent": NTXentLoss(temperature=temperature),
        "barlow": BarlowTwinsLoss(),
        "vicreg": VICRegLoss(),
        "l2": F.mse_loss,
    }[loss]
    stops = loss in TO_FEATURES

    def between(early_e: Sequence[Tensor], final_bd: Tensor, y_b: Tensor | None) -> Tensor:
        target = final_bd.detach() if stops else final_bd
        return torch.stack([pair(early, target) for early in early_e]).sum()

    return of_two_or_more(between)


def check_loss(loss: Loss | Term, temperature: float) -> None:
    """Raises FitError: no such loss, or a temperature that is not positive."""
    if not (callable(loss) or loss in get_args(Loss)) or not temperature > 0:
        raise FitError(
            f"loss={loss!r}, temperature={temperature}; give one of {', '.join(get_args(Loss))} or a function "
            f"(early_e, final_bd, y_b), and a positive one"
        )


def loss_name(loss: Loss | Term) -> str:
    """Its name; of a function where it was defined, and a digest of its code."""
    return identity(loss) if callable(loss) else loss


def weight_of(loss: Loss | Term) -> float:
    """What it counts beside classification if nobody says: 1 for one's own."""
    return 1.0 if callable(loss) else WEIGHTS[loss]


def _one_number(term: Term) -> Term:
    """The term, refused with the reason where it gives something that training could not descend."""

    def checked(early_e: Sequence[Tensor], final_bd: Tensor, y_b: Tensor | None) -> Tensor:
        value = term(early_e, final_bd, y_b)
        learnable = isinstance(value, Tensor) and (value.requires_grad or not torch.is_grad_enabled())
        if not learnable or value.numel() != 1:
            told = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise FitError(
                f"term {reference(term)} gave {told}; give one number with a gradient, the mean over samples of the "
                f"sum over early_e"
            )
        return value.reshape(())

    return checked


def of_two_or_more(term: Term) -> Term:
    """The term, which refuses a batch of one with the reason."""

    def checked(early_e: Sequence[Tensor], final_bd: Tensor, y_b: Tensor | None = None) -> Tensor:
        if len(final_bd) < 2:
            raise FitError(
                f"a batch of {len(final_bd)}; alignment compares samples with each other (negatives, variances, "
                f"BatchNorm), give at least 2"
            )
        return term(early_e, final_bd, y_b)

    return checked


def self_contrastive(z_mbd: Tensor, temperature: float, y_b: Tensor | None = None) -> Tensor:
    """SelfCon: each exit's projection of a sample against all others of the batch, from all ``m`` exits.

    Positives are the other exits' projections of the same sample; with labels, also all exits' projections of samples
    of the same class. ``-1/(b m) sum_i 1/|P(i)| sum_{p in P(i)} log(exp(z_i z_p / t) / sum_{a != i} exp(z_i z_a /
    t))``, of normalized projections. With two exits and no labels it is NT-Xent.

    Source: Bae et al., AAAI 2023, arXiv:2106.15499, eq. 2 and 3 (t .1; one sub-network beside the backbone; ours takes
    all exits, and without labels its self-supervised form).
    """
    m, b, _ = z_mbd.shape
    z_nd = F.normalize(z_mbd, dim=-1).flatten(0, 1)
    sample_b = torch.arange(b, device=z_mbd.device)
    label_n = (sample_b if y_b is None else y_b).repeat(m)
    itself_nn = torch.eye(m * b, dtype=torch.bool, device=z_mbd.device)
    alike_nn = (z_nd @ z_nd.T / temperature).masked_fill(itself_nn, -torch.inf)
    log_p_nn = alike_nn.log_softmax(1).masked_fill(itself_nn, 0.0)
    positive_nn = (label_n[:, None] == label_n) & ~itself_nn
    return -((log_p_nn * positive_nn).sum(1) / positive_nn.sum(1)).mean()
