"""L2W-DEN: a small net says what each sample counts at each exit, and is taught by samples as they would leave.

Shapes: b samples, e exits, k classes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from dynext.errors import FitError
from dynext.fitting import FitConfig, fit
from dynext.meta.functional import Learner, called_with
from dynext.meta.meta_gf import SETTLED
from dynext.meta.norms import settle
from dynext.modules.modes import batch_statistics, evaluating
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.fronts.quota import quotas
from dynext.seeding import generator, seeded
from dynext.train.batches import Augment, BatchSampler
from dynext.train.exit_loop import check_plain, handed_back, labelled
from dynext.types import Source


def row_weights(raw_be: Tensor, strength: float) -> Tensor:
    """``1 + strength (w - mean w)``, the mean over all samples and exits: weights ``[b e]`` of mean 1.

    >>> row_weights(torch.tensor([[0.0, 1.0]]), 0.5).tolist()
    [[0.75, 1.25]]

    Source: L2W-DEN, Han et al., ECCV 2022, arXiv:2209.08310, section 3.2.
    """
    return 1 + strength * (raw_be - raw_be.mean())


def leaving(sure_be: Tensor, share_e: Sequence[float]) -> Tensor:
    """Where each sample leaves ``[b]`` if a share of all samples leaves at each exit, the surest of those that are
    there.

    >>> leaving(torch.tensor([[0.9, 0.5], [0.8, 0.5], [0.1, 0.5], [0.2, 0.5]]), (0.5, 0.5)).tolist()
    [0, 0, 1, 1]
    """
    exit_b = torch.full((len(sure_be),), len(share_e) - 1)
    there_b = torch.ones(len(sure_be), dtype=torch.bool)
    for e, share in enumerate(share_e[:-1]):
        sure_b = sure_be[:, e].cpu().masked_fill(~there_b, -1.0)
        out = sure_b.argsort(descending=True, stable=True)[: min(int(len(sure_be) * share), int(there_b.sum()))]
        exit_b[out] = e
        there_b[out] = False
    return exit_b


class Weigher(nn.Module):
    """Each sample's losses at all exits ``[b e]`` to numbers in (0, 1), before `row_weights` centers them.

    Source: L2W-DEN's weight prediction network, one hidden layer.
    """

    def __init__(self, num_exits: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(num_exits, hidden), nn.ReLU(), nn.Linear(hidden, num_exits))

    def forward(self, loss_be: Tensor) -> Tensor:
        return self.layers(loss_be).sigmoid()


class Weighed(nn.Module):
    """Samples to learn from and to judge by, to a loss that moves the net and its weigher each by its own gradient."""

    def __init__(self, net: DynamicNet, *, strength: float, q: float, pseudo_lr: float, hidden: int) -> None:
        super().__init__()
        self.net, self.weigher = net, Weigher(net.num_exits, hidden)
        self.strength, self.pseudo_lr = strength, pseudo_lr
        self.share_e = quotas(net.num_exits, q)
        self.everything = (Learner(net, range(net.num_exits)),)

    def forward(self, x: Tensor, y_b: Tensor, judged_x: Tensor, judged_y_b: Tensor) -> Tensor:
        (learner,) = self.everything
        own = dict(learner.named_parameters())
        leaves = {name: p.detach().requires_grad_() for name, p in own.items()}
        with evaluating(self.net), batch_statistics(self.net):
            loss_be = _losses(called_with(learner, leaves, (x,)), y_b)
            weight_be = row_weights(self.weigher(loss_be.detach()), self.strength)
            weighted = (weight_be * loss_be).sum(1).mean()
            found = torch.autograd.grad(weighted, list(leaves.values()), create_graph=True, allow_unused=True)
            grads = {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}
            # A step that is not taken: what the weights would do to the samples that judge them.
            ahead = {**leaves, **{name: leaves[name] - self.pseudo_lr * grad for name, grad in grads.items()}}
            logits_e = called_with(learner, ahead, (judged_x,))
        judged = self._as_they_leave(logits_e, judged_y_b)
        toward = torch.stack([(own[name] * grad.detach()).sum() for name, grad in grads.items()]).sum()
        # The net's gradient is the weighted loss's, the weigher's that of the samples which judge.
        return weighted.detach() + (toward - toward.detach()) + (judged - judged.detach())

    def _as_they_leave(self, logits_e: list[Tensor], y_b: Tensor) -> Tensor:
        """Cross-entropy of each sample at the exit where it would leave, by the quotas."""
        sure_be = torch.stack([logits.detach().softmax(-1).amax(-1) for logits in logits_e], dim=1)
        exit_b = leaving(sure_be, self.share_e).to(y_b.device)
        return _losses(logits_e, y_b).gather(1, exit_b[:, None]).mean()


def _losses(logits_e: Sequence[Tensor], y_b: Tensor) -> Tensor:
    """Cross-entropy of each sample at each exit ``[b e]``."""
    return torch.stack([F.cross_entropy(logits, y_b, reduction="none") for logits in logits_e], dim=1)


def weigh_samples(
    net: DynamicNet,
    source: Source,
    config: FitConfig,
    *,
    strength: float = 0.8,
    q: float = 0.5,
    pseudo_lr: float = 0.1,
    hidden: int = 64,
    batch_size: int = 64,
    augment: Augment | None = None,
) -> DynamicNet:
    """A copy of ``net`` trained jointly on labelled samples, each of which counts at each exit what a small net says.

    That net is taught beside it: by how well other samples fare, after a step with its weights, each at the exit where
    it would leave. So exits learn from the samples that they will answer.

    Args:
        strength: how far weights may be from 1 (0: plain joint training).
        q: how many samples stay at each exit, of those that judge; see `quotas`' source.
        pseudo_lr: size of the step that is tried.

    Raises:
        FitError: no early exit, a cascade, or figures out of range.
        SourceError: no labels, or samples of another shape than the model expects.

    Source: L2W-DEN, Han et al., ECCV 2022, arXiv:2209.08310 (CIFAR-100: one to one and a half points). Ours moves both
    nets in one step by one optimizer; BatchNorms use the samples at hand and take their running statistics from
    training samples in the end.
    """
    if not 0 <= strength <= 1 or not pseudo_lr > 0:
        raise FitError(f"strength={strength}, pseudo_lr={pseudo_lr}; give a strength in [0, 1] and a positive step")
    rows = BatchSampler.of(source, net, augment)
    check_plain(net)
    student = copy.deepcopy(net).requires_grad_(True)
    with seeded(config.seed):
        weighed = Weighed(student, strength=strength, q=q, pseudo_lr=pseudo_lr, hidden=hidden)
    weighed.weigher.to(next(student.parameters()))

    def step(trained: nn.Module, draw: Generator, done: float) -> Tensor:
        like = next(student.parameters())
        taught, judged = rows.draw(batch_size, draw), rows.draw(batch_size, draw)
        assert taught.y is not None and judged.y is not None  # noqa: S101, PT018  `BatchSampler.of` has looked
        return trained(taught.x.to(like), taught.y.to(like.device), judged.x.to(like), judged.y.to(like.device))

    fit(weighed.train(), step, labelled(config, "L2W", strength=strength, q=q, lr=pseudo_lr, batch=batch_size))
    seen = rows.draw(SETTLED, generator(config.seed + 1)).x
    settle(Learner(student, range(student.num_exits)), seen.to(next(student.parameters())))
    return handed_back(student, net).eval()
