"""L2W-DEN: a small net says what each sample counts at each exit, and learns it from other samples as they would leave.

Shapes: b samples, e exits, k classes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from typing_extensions import Unpack

from dynext.data.given import LearnOptions, takes_data
from dynext.errors import FitError
from dynext.fitting import FitConfig, configured, fit
from dynext.meta.functional import Learner, called_with
from dynext.meta.meta_gf import SETTLED
from dynext.meta.norms import settle
from dynext.modules.modes import batch_statistics, evaluating
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.fronts.quota import quotas
from dynext.seeding import generator, seeded
from dynext.train.batches import Augment, BatchSampler
from dynext.train.exit_loop import check_plain, handed_back, labelled
from dynext.types import Data
from dynext.usual_modes import in_usual_modes

USUAL = FitConfig(batch_size=64)


def sample_weights(raw_be: Tensor, strength: float) -> Tensor:
    """``1 + strength (w - mean w)``, the mean over all samples and exits: weights ``[b e]`` of mean 1.

    >>> sample_weights(torch.tensor([[0.0, 1.0]]), 0.5).tolist()
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
    """Each sample's losses at all exits ``[b e]`` to numbers in (0, 1), before `sample_weights` centers them.

    Source: L2W-DEN's weight prediction network, one hidden layer.
    """

    def __init__(self, num_exits: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(num_exits, hidden), nn.ReLU(), nn.Linear(hidden, num_exits))

    def forward(self, loss_be: Tensor) -> Tensor:
        return self.layers(loss_be).sigmoid()


class WeighedLoss(nn.Module):
    """Training samples and meta-samples, to a loss that moves the net and its weigher each by its own gradient.

    Meta-samples are what the weights are good for: they measure the net after a step by the weighted loss.
    """

    def __init__(self, net: DynamicNet, *, strength: float, q: float, pseudo_lr: float, hidden: int) -> None:
        super().__init__()
        self.net, self.weigher = net, Weigher(net.num_exits, hidden)
        self.strength, self.pseudo_lr = strength, pseudo_lr
        self.share_e = quotas(net.num_exits, q)
        self.every_exit = (Learner(net, range(net.num_exits)),)

    def forward(self, x: Tensor, y_b: Tensor, meta_x: Tensor, meta_y_b: Tensor) -> Tensor:
        (learner,) = self.every_exit
        own = dict(learner.named_parameters())
        leaves = {name: p.detach().requires_grad_() for name, p in own.items()}
        with evaluating(self.net), batch_statistics(self.net):
            loss_be = _losses(called_with(learner, leaves, (x,)), y_b)
            weight_be = sample_weights(self.weigher(loss_be.detach()), self.strength)
            weighted = (weight_be * loss_be).sum(1).mean()
            of_leaves = torch.autograd.grad(weighted, list(leaves.values()), create_graph=True, allow_unused=True)
            grads = {name: grad for name, grad in zip(leaves, of_leaves, strict=True) if grad is not None}
            # A step that is not taken: what the weights would do to the meta-samples.
            ahead = {**leaves, **{name: leaves[name] - self.pseudo_lr * grad for name, grad in grads.items()}}
            logits_e = called_with(learner, ahead, (meta_x,))
        meta_loss = self._as_they_leave(logits_e, meta_y_b)
        toward = torch.stack([(own[name] * grad.detach()).sum() for name, grad in grads.items()]).sum()
        # The net's gradient is the weighted loss's, the weigher's that of the meta-samples' loss.
        return weighted.detach() + (toward - toward.detach()) + (meta_loss - meta_loss.detach())

    def _as_they_leave(self, logits_e: list[Tensor], y_b: Tensor) -> Tensor:
        """Cross-entropy of each sample at the exit where it would leave, by the quotas."""
        sure_be = torch.stack([logits.detach().softmax(-1).amax(-1) for logits in logits_e], dim=1)
        exit_b = leaving(sure_be, self.share_e).to(y_b.device)
        return _losses(logits_e, y_b).gather(1, exit_b[:, None]).mean()


def _losses(logits_e: Sequence[Tensor], y_b: Tensor) -> Tensor:
    """Cross-entropy of each sample at each exit ``[b e]``."""
    return torch.stack([F.cross_entropy(logits, y_b, reduction="none") for logits in logits_e], dim=1)


@in_usual_modes
@takes_data("source")
def weigh_samples(
    net: DynamicNet,
    source: Data,
    config: FitConfig | None = None,
    *,
    strength: float = 0.8,
    q: float = 0.5,
    pseudo_lr: float = 0.1,
    hidden: int = 64,
    augment: Augment | None = None,
    **options: Unpack[LearnOptions],
) -> DynamicNet:
    """A copy of ``net`` trained jointly on labelled samples, each of which counts at each exit what a small net says.

    That net is trained beside it: by the loss of other samples after a step with its weights, each at the exit where it
    would leave. So exits learn from the samples that they will answer.

    Args:
        config: how to train, as a whole or field by field (``steps=600, seed=1``).
        strength: how far weights may be from 1 (0: plain joint training).
        q: how many of these other samples stay at each exit; see `quotas`' source.
        pseudo_lr: size of the step that is tried.
        hidden: size of the small net's hidden layer.

    Raises:
        FitError: no early exit, a cascade, or figures out of range.
        SourceError: no labels, or samples of another shape than the model expects.

    Source: L2W-DEN, Han et al., ECCV 2022, arXiv:2209.08310 (CIFAR-100: one to one and a half points). Ours moves both
    nets in one step by one optimizer; BatchNorms use the samples at hand and take their running statistics from
    training samples in the end.
    """
    if not 0 <= strength <= 1 or not pseudo_lr > 0:
        raise FitError(f"strength={strength}, pseudo_lr={pseudo_lr}; give a strength in [0, 1] and a positive step")
    config = configured(USUAL, config, options)
    sampler, batch_size = BatchSampler.of(source, net, augment), config.batch_size
    check_plain(net)
    student = copy.deepcopy(net).requires_grad_(True)
    with seeded(config.seed):
        weighed = WeighedLoss(student, strength=strength, q=q, pseudo_lr=pseudo_lr, hidden=hidden)
    weighed.weigher.to(next(student.parameters()))

    def step(trained: nn.Module, draw: Generator, done: float) -> Tensor:
        like = next(student.parameters())
        taught, meta = sampler.draw(batch_size, draw), sampler.draw(batch_size, draw)
        assert taught.y is not None and meta.y is not None  # noqa: S101, PT018  `BatchSampler.of` has checked
        return trained(taught.x.to(like), taught.y.to(like.device), meta.x.to(like), meta.y.to(like.device))

    fit(
        weighed.train(),
        step,
        labelled(config, "L2W", strength=strength, q=q, lr=pseudo_lr, batch=batch_size),
        modes="given",
    )
    x = sampler.draw(SETTLED, generator(config.seed + 1)).x
    settle(Learner(student, range(student.num_exits)), x.to(next(student.parameters())))
    return handed_back(student, net, sampler.content).eval()
