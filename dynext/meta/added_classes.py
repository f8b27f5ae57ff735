"""Further classes beside those that a net knows: old classifiers stay, bit for bit, and new rows join them.

Shapes: n samples, m new classes, k old classes, d the size of an embedding, which differs from exit to exit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dynext.data.given import takes_data
from dynext.errors import FitError, SourceError
from dynext.meta.new_classes import with_classes
from dynext.meta.prototypes import classifier_of
from dynext.net.dynamic_net import DynamicNet
from dynext.net.embeddings import Embeddings, embed
from dynext.net.prototypes import class_means
from dynext.types import Data
from dynext.usual_modes import in_usual_modes

KEPT = 0.25
"""Share of a new class's examples that may go to old classes where no old sample says what it would cost these."""


DECAY = 0.01
"""Of what is fitted towards where it begins."""


@in_usual_modes
@takes_data("examples", unlabelled=("old",), own_classes=True)
@torch.no_grad()
def add_classes(net: DynamicNet, examples: Data, *, old: Data | None = None) -> DynamicNet:
    """A copy of ``net`` that knows the classes of a few labelled ``examples`` as well, at every exit.

    The old classes keep their numbers, and their rows in every classifier, bit for bit. A new class's row at an exit
    begins as the direction from the ``old`` samples' mean embedding to its examples' mean, as long as old rows are on
    average. With ``old`` samples the new rows are then fitted, and they alone: cross-entropy of the examples and of the
    old samples, whose labels are the net's own answers, every class weighing the same, a little decay towards that
    beginning. Thresholds and temperatures of the old net say nothing about the new one: `dynext.collect`,
    `dynext.choose`.

    Args:
        examples: labelled from 0; class 0 becomes the first after the old ones.
        old: some samples of all old classes, unlabelled, or a synthesized bank. Without any, a new class wins three
            quarters of its examples, and nobody knows what it takes from the old classes.

    Raises:
        SourceError: no labels, a class without an example, or samples of another shape.
        FitError: a cascade, or classifiers that are not linear with a bias.

    Source: weight imprinting, Qi et al., CVPR 2018, arXiv:1712.07136, refined as there by fitting the rows; ours leaves
    the old rows alone, and takes directions from the old samples' mean, since embeddings after a ReLU all point the
    same way.
    """
    if examples.bn == "batch":
        raise SourceError("synthesized examples, of statistics that no real sample has; give labelled real ones")
    given = embed(net, examples)
    if given.label_n is None:
        raise SourceError("examples without labels; give each the number of its class, from 0")
    others = None if old is None else embed(net, old)
    num_old, num_new = net.num_classes, int(given.label_n.max()) + 1
    grown = with_classes(net, num_old + num_new)
    for e in range(net.num_exits):
        before, after = classifier_of(net, e), classifier_of(grown, e)
        if before.bias is None:
            raise FitError(f"the classifier of exit {e} has no bias, which a new class needs; use dx.align.few_shot")
        weight_md, bias_m = _rows(given, others, e, before.weight.float().cpu())
        after.weight.copy_(torch.cat([before.weight, weight_md.to(before.weight)]))
        after.bias.copy_(torch.cat([before.bias, bias_m.to(before.bias)]))
    return grown


def _rows(given: Embeddings, others: Embeddings | None, e: int, old_kd: Tensor) -> tuple[Tensor, Tensor]:
    """Weights ``[m d]`` and biases ``[m]`` of the new classes at exit ``e``."""
    assert given.label_n is not None  # noqa: S101  the caller has looked
    f_nd, num_new = given.embedding_e[e], int(given.label_n.max()) + 1
    center_d = torch.zeros(f_nd.shape[1]) if others is None else others.embedding_e[e].mean(0)
    direction_md = class_means(f_nd, given.label_n, num_new) - center_d
    size = old_kd.norm(dim=1).mean()
    weight_md = size * direction_md / direction_md.norm(dim=1, keepdim=True).clamp_min(1e-12)
    ahead_nm = f_nd @ weight_md.T - given.logits_nek[:, e].amax(1, keepdim=True)
    bias_m = -torch.stack([ahead_nm[given.label_n == c, c].quantile(KEPT) for c in range(num_new)])
    if others is None:
        return weight_md, bias_m
    return _fitted(
        torch.cat([others.embedding_e[e], f_nd]),
        torch.cat([others.logits_nek[:, e], given.logits_nek[:, e]]),
        torch.cat([others.logits_nek[:, e].argmax(1), given.label_n + len(old_kd)]),
        (weight_md, bias_m),
    )


@torch.enable_grad()
def _fitted(f_nd: Tensor, old_nk: Tensor, y_n: Tensor, start: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The new rows beside logits ``[n k]`` that stay, by cross-entropy with the labels ``[n]``: a convex problem."""
    unit = float(f_nd.norm(dim=1).mean().clamp_min(1e-12))  # embeddings of any size: steps and decay in one unit
    count_c = torch.bincount(y_n, minlength=old_nk.shape[1] + len(start[1])).clamp_min(1)
    weigh_n = 1.0 / count_c[y_n]
    weigh_n = weigh_n / weigh_n.sum()
    began = torch.cat([unit * start[0], start[1][:, None]], dim=1)
    rows = began.clone().requires_grad_(True)
    inputs = torch.cat([f_nd / unit, torch.ones(len(f_nd), 1)], dim=1)
    fit = torch.optim.LBFGS([rows], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        fit.zero_grad()
        each_n = F.cross_entropy(torch.cat([old_nk, inputs @ rows.T], dim=1), y_n, reduction="none")
        value = (weigh_n * each_n).sum() + DECAY * ((rows - began) / unit).square().mean()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    fit.step(loss)  # type: ignore[no-untyped-call]
    fitted = rows.detach()
    return fitted[:, :-1] / unit, fitted[:, -1]
