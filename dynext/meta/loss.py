"""The meta-loss: episodes to a number whose gradient by the net's parameters is the meta-gradient.

What no inner step changes is run once for an episode, for all of its tasks, with its graph; each task's inner loop
then runs only what its adapted parameters change.

Shapes: b samples. Support and query samples ``[b ...]``, labels ``[b]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynext.meta.engines import Engine, differentiable_attention, engine_named
from dynext.meta.exit_ownership import Claim, by_name
from dynext.meta.functional import Learner, Live, Trunk, begins_at
from dynext.meta.inner import InnerLoop, Problem
from dynext.meta.norms import Norms, StepStatistics
from dynext.meta.prototypes import classifier_of, prototype_loss
from dynext.net.dynamic_net import DynamicNet


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedClaim:
    """A claim with the part of the net that its inner loop runs."""

    learner: Learner
    adapted: tuple[str, ...]
    """Names in the learner."""
    names: tuple[str, ...]
    """The same ones in the net."""


def prepare_claim(net: DynamicNet, claim: Claim, *, cached: bool = True) -> PreparedClaim:
    """A claim with its learner, which begins where what it adapts begins; not ``cached``: at the input."""
    adapts = by_name(net, claim.adapts)
    learner = Learner(net, claim.exits, begins_at(net, claim.exits, adapts.values()) if cached else 0)
    inside = {id(p): name for name, p in learner.named_parameters()}
    return PreparedClaim(learner=learner, adapted=tuple(inside[id(p)] for p in adapts.values()), names=tuple(adapts))


class MetaLoss(nn.Module):
    """Support and query samples of one episode to the sum of its tasks' query losses after their inner loops.

    Args:
        cached: run what does not change once; ``False`` runs every task from the input in every step, for comparison.
    """

    def __init__(
        self,
        net: DynamicNet,
        claims: Sequence[Claim],
        inner: InnerLoop,
        *,
        engine: str | Engine = "dynext",
        cached: bool = True,
    ) -> None:
        super().__init__()
        self.net, self.inner = net, inner
        self.engine = None if inner.rule == "prototypes" else engine_named(engine, inner)
        self.statistics = StepStatistics(net, inner.steps) if inner.bn == "per_step" else None
        self.norms = Norms(net, inner.bn, self.statistics, gathering=True)
        # Tuples, so that the net's modules are registered once.
        self.claims = tuple(prepare_claim(net, claim, cached=cached) for claim in claims)
        self.trunks = (Trunk(net, [claim.learner.begin for claim in self.claims]),)
        exits = sorted(e for claim in claims for e in claim.exits)
        self.every_exit = (Learner(net, exits),)
        self.layers = tuple(classifier_of(net, e) for e in exits) if inner.rule == "prototypes" else ()
        self.rates = nn.ParameterDict()
        if inner.learned_lr:
            for name, p in by_name(net, [name for claim in self.claims for name in claim.names]).items():
                self.rates[name.replace(".", "|")] = nn.Parameter(torch.full_like(p, inner.lr))

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        second = self.inner.rule == "second_order"
        with self.norms.ready(), differentiable_attention() if second else nullcontext():
            if self.engine is None:
                return prototype_loss(
                    self.every_exit[0], self.layers, self.norms, (support_x, support_y), (query_x, query_y)
                )
            # First-order rules see the support samples through constant gradients alone.
            with nullcontext() if second else torch.no_grad():
                support = self._lives(support_x, 0)
            query = self._lives(query_x, self.inner.steps)
            losses = []
            for claim in self.claims:
                begin = claim.learner.begin
                problem = Problem(
                    learner=claim.learner,
                    adapted=claim.adapted,
                    support=support[begin],
                    support_y=support_y,
                    query=query[begin],
                    query_y=query_y,
                    norms=self.norms,
                    lr=self._rates(claim),
                )
                losses.append(self.engine(problem, self.inner))
            return torch.stack(losses).sum()

    def _lives(self, x: Tensor, step: int) -> dict[int, Live]:
        (trunk,) = self.trunks
        return dict(zip(trunk.begins, self.norms.call(trunk, {}, (x,), step), strict=True))

    def _rates(self, claim: PreparedClaim) -> Mapping[str, Tensor] | float:
        if not self.inner.learned_lr:
            return self.inner.lr
        names = zip(claim.adapted, claim.names, strict=True)
        return {own: self.rates[name.replace(".", "|")] for own, name in names}

    def step_sizes(self) -> dict[str, Tensor] | None:
        """Learned step sizes by the names of parameters in the net."""
        if not self.inner.learned_lr:
            return None
        return {name.replace("|", "."): rate.detach().cpu().clone() for name, rate in self.rates.items()}


def gradients(loss: MetaLoss, *episode: Tensor) -> dict[str, Tensor]:
    """The meta-gradient of one episode by the names of the net's parameters; ``episode`` as `MetaLoss` takes it."""
    named: dict[str, Any] = {name: p for name, p in loss.net.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(loss(*episode), list(named.values()), allow_unused=True)
    return {name: grad for name, grad in zip(named, grads, strict=True) if grad is not None}
