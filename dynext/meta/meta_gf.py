"""Meta-GF: each exit trained alone from one start, the results fused parameter by parameter, by learned weights.

Shapes: b samples, e exits.
"""

from __future__ import annotations

import copy

import torch
from torch import Generator, Tensor, nn
from typing_extensions import Unpack

from dynext.data.given import LearnOptions, takes_data
from dynext.errors import FitError
from dynext.fitting import FitConfig, configured, fit
from dynext.meta.exit_ownership import used
from dynext.meta.functional import Learner, called_with
from dynext.meta.inner import loss_of
from dynext.meta.norms import settle
from dynext.modules.modes import batch_statistics, evaluating
from dynext.net.dynamic_net import DynamicNet
from dynext.seeding import generator
from dynext.train.batches import Augment, BatchSampler
from dynext.train.exit_loop import check_plain, handed_back, labelled
from dynext.types import Data
from dynext.usual_modes import in_usual_modes

USUAL = FitConfig(batch_size=64)

SETTLED = 512
"""Samples that the running statistics are taken from in the end."""


@in_usual_modes
@takes_data("source")
def meta_fusion(
    net: DynamicNet,
    source: Data,
    config: FitConfig | None = None,
    *,
    inner_steps: int = 1,
    inner_lr: float = 0.1,
    augment: Augment | None = None,
    **options: Unpack[LearnOptions],
) -> DynamicNet:
    """A copy of ``net`` trained on labelled samples so that exits that pull apart do not overrule each other.

    Each step starts every exit at the same parameters and takes ``inner_steps`` gradient steps of its own loss alone;
    then ``theta_n = sum_e sigmoid(w_en) theta_en / sum_e sigmoid(w_en)`` over the exits that use parameter tensor n,
    with w learned (by ``config``) from all exits' loss at the fused parameters on other samples, which the next step
    then starts from.

    Args:
        config: how to train, as a whole or field by field (``steps=600, seed=1``).
        inner_lr: falls by half in the course of training, whatever ``config``'s schedule.

    Raises:
        FitError: no early exit, a cascade, or steps out of range.
        SourceError: no labels, or samples of another shape than the model expects.

    Source: Meta-GF, Sun et al., ECCV 2022. Ours has one weight an exit and parameter tensor; BatchNorms use the samples
    at hand and take their running statistics from training samples in the end.
    """
    if inner_steps < 1 or not inner_lr > 0:
        raise FitError(f"inner_steps={inner_steps}, inner_lr={inner_lr}; give 1 or more steps of a positive size")
    config = configured(USUAL, config, options)
    sampler, batch_size = BatchSampler.of(source, net, augment), config.batch_size
    check_plain(net)
    student = copy.deepcopy(net).requires_grad_(False)
    fusion = Fusion(student)

    def step(trained: nn.Module, draw: Generator, done: float) -> Tensor:
        like = next(student.parameters())
        support, query = sampler.draw(batch_size, draw), sampler.draw(batch_size, draw)
        assert support.y is not None and query.y is not None  # noqa: S101, PT018  `BatchSampler.of` has checked
        size = inner_lr * (1 - done / 2)
        experts = fusion.experts(support.x.to(like), support.y.to(like.device), inner_steps, size)
        return trained(experts, query.x.to(like), query.y.to(like.device))

    fit(
        fusion.train(),
        step,
        labelled(config, "Meta-GF", steps=inner_steps, lr=inner_lr, batch=batch_size),
        modes="given",
    )
    x = sampler.draw(SETTLED, generator(config.seed + 1)).x
    settle(Learner(student, range(student.num_exits)), x.to(next(student.parameters())))
    return handed_back(student, net, sampler.content).eval()


class Fusion(nn.Module):
    """The net, and how much each exit has to say about each parameter tensor it uses."""

    def __init__(self, net: DynamicNet) -> None:
        super().__init__()
        self.net = net
        self.exits = range(net.num_exits)
        self.uses = [used(net, e) for e in self.exits]
        self.names = tuple(name for name, _ in net.named_parameters() if any(name in uses for uses in self.uses))
        self.weights = nn.Parameter(torch.zeros(net.num_exits, len(self.names)))
        """``[e n]``, sigmoids of which are the weights."""
        self.learners = tuple(Learner(net, (e,)) for e in self.exits)
        self.every_exit = (Learner(net, self.exits),)

    def experts(self, x: Tensor, y_b: Tensor, steps: int, lr: float) -> list[dict[str, Tensor]]:
        """What each exit alone makes of the parameters it uses, by their names in the net."""
        experts = []
        for learner, names in zip(self.learners, self.uses, strict=True):
            own = self._inside(learner)
            parameters = {name: self.net.get_parameter(name).detach().clone() for name in names}
            for _ in range(steps):
                leaves = {name: p.requires_grad_() for name, p in parameters.items()}
                with evaluating(self.net), batch_statistics(self.net), torch.enable_grad():
                    logits_e = called_with(learner, {own[n]: p for n, p in leaves.items()}, (x,))
                    grads = torch.autograd.grad(loss_of(logits_e, y_b), list(leaves.values()))
                parameters = {n: (leaves[n] - lr * g).detach() for n, g in zip(leaves, grads, strict=True)}
            experts.append(parameters)
        return experts

    def forward(self, experts: list[dict[str, Tensor]], x: Tensor, y_b: Tensor) -> Tensor:
        """The loss of all exits at the fused parameters; the net then stands there."""
        fused = self.fused(experts)
        (every_exit,) = self.every_exit
        own = self._inside(every_exit)
        with evaluating(self.net), batch_statistics(self.net):
            logits_e = called_with(every_exit, {own[name]: p for name, p in fused.items()}, (x,))
        loss = loss_of(logits_e, y_b)
        with torch.no_grad():
            for name, p in fused.items():
                self.net.get_parameter(name).copy_(p)
        return loss

    def fused(self, experts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Each parameter tensor as the weighted mean over the exits that use it."""
        share_en = self.weights.sigmoid()
        fused = {}
        for n, name in enumerate(self.names):
            users = [e for e in self.exits if name in experts[e]]
            total = share_en[users, n].sum()
            fused[name] = torch.stack([share_en[e, n] / total * experts[e][name] for e in users]).sum(0)
        return fused

    def _inside(self, learner: Learner) -> dict[str, str]:
        """Names in a learner by those in the net."""
        there = {id(p): name for name, p in learner.named_parameters()}
        return {name: there[id(p)] for name, p in self.net.named_parameters() if id(p) in there}
