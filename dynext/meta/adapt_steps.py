"""From a few labelled samples to parameters that know them: what adapting and evaluating on episodes share.

Nothing here changes a net. Shapes: b samples, e exits, k classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dynext.errors import FitError
from dynext.meta.adapt_config import AdaptConfig
from dynext.meta.exit_ownership import Adapts, Claim, ownership
from dynext.meta.exit_tasks import separate
from dynext.meta.functional import Learner, Live, Trunk, called_with
from dynext.meta.inner import Problem, loss_of, steps_on_support
from dynext.meta.loss import PreparedClaim, prepare_claim
from dynext.meta.norms import Norms, StepStatistics, statistics_of
from dynext.meta.prototypes import classifier_of, embeddings, prototype_parameters
from dynext.meta.start import MetaStart
from dynext.modules.modes import evaluating
from dynext.net.dynamic_net import DynamicNet

HALVINGS = 16
"""How often at most `careful_steps` halves a step."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SupportFeatures:
    """Support samples as the unchanging part of the net gives them. With BatchNorms that do not look at the other
    samples, some of them are what the same samples alone would give.
    """

    embedding_e: tuple[Tensor, ...]
    """What each exit's classifier sees ``[b d]``; empty where no class means are taken."""
    lives: Mapping[int, Live]
    """What is live before the stages where tasks begin."""

    def subset(self, chosen_b: Tensor) -> SupportFeatures:
        """The samples for which ``chosen_b [b]`` is true."""
        lives = {begin: tuple(tensor[chosen_b] for tensor in live) for begin, live in self.lives.items()}
        return SupportFeatures(embedding_e=tuple(embedding[chosen_b] for embedding in self.embedding_e), lives=lives)


class SupportLearner:
    """A net, where to start from, and how to learn; `learned` gives the parameters after a set of samples."""

    def __init__(self, start: MetaStart, config: AdaptConfig) -> None:
        self.start, self.config, self.net = start, config, start.net
        net = self.net
        self.every_exit = Learner(net, range(net.num_exits))
        inside = {id(p): name for name, p in self.every_exit.named_parameters()}
        self.own_names = {name: inside[id(p)] for name, p in net.named_parameters() if id(p) in inside}
        self.norms = Norms(net, config.bn, _statistics(start, config.steps) if config.bn == "per_step" else None)
        self.claims: tuple[PreparedClaim, ...] = ()
        if config.method != "prototypes" and config.steps:
            self.claims = tuple(prepare_claim(net, claim) for claim in _claims(net, config.method))

    def learned(self, x: Tensor, y_b: Tensor) -> dict[str, Tensor]:
        """What samples ``x [b ...]`` and labels ``[b]`` change, by the parameters' names in the net."""
        return self.learned_from(self.features(x), y_b)

    @torch.no_grad()
    def features(self, x: Tensor) -> SupportFeatures:
        """What learning from samples ``x [b ...]`` needs of that part of the net which it leaves as it is."""
        embedding_e: list[Tensor] = []
        lives: dict[int, Live] = {}
        with self.norms.ready():
            if "prototypes" in (self.config.method, self.config.classifiers):
                layers = [classifier_of(self.net, e) for e in self.every_exit.numbers]
                embedding_e = embeddings(self.every_exit, layers, self.norms, x, 0)
            if self.claims:
                trunk = Trunk(self.net, [claim.learner.begin for claim in self.claims])
                lives = dict(zip(trunk.begins, self.norms.call(trunk, {}, (x,), 0), strict=True))
        return SupportFeatures(embedding_e=tuple(embedding_e), lives=lives)

    def learned_from(self, features: SupportFeatures, y_b: Tensor) -> dict[str, Tensor]:
        """What samples of these ``features`` and labels ``[b]`` change, by the parameters' names in the net."""
        changed: dict[str, Tensor] = {}
        with self.norms.ready(), torch.no_grad():
            if features.embedding_e:
                changed |= prototype_parameters(
                    self.net, features.embedding_e, y_b, scaled=self.config.careful or not self.claims
                )
            if self.claims:
                changed |= self._stepped(features.lives, y_b, changed)
        return {name: tensor.detach() for name, tensor in changed.items()}

    def _stepped(self, lives: Mapping[int, Live], y_b: Tensor, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = {id(p): name for name, p in self.net.named_parameters()}
        stepped: dict[str, Tensor] = {}
        for claim in self.claims:
            names = {name: own[id(p)] for name, p in claim.learner.named_parameters()}
            start = {
                name: before.get(names[name], p).detach().requires_grad_(name in claim.adapted)
                for name, p in claim.learner.named_parameters()
            }
            live = lives[claim.learner.begin]
            problem = Problem(
                learner=claim.learner, adapted=claim.adapted, support=live, support_y=y_b, query=live, query_y=y_b,
                norms=self.norms, lr=self._rates(claim),
            )  # fmt: skip
            with torch.enable_grad():
                if self.config.careful:
                    after = careful_steps(problem, start, self.config.steps)
                else:
                    after = steps_on_support(problem, start, self.config.steps, through=False)
            stepped |= {names[name]: after[name] for name in claim.adapted}
        return stepped

    def _rates(self, claim: PreparedClaim) -> Mapping[str, Tensor] | float:
        learned = self.start.step_sizes
        if learned is None:
            return self.config.lr
        missing = [name for name in claim.names if name not in learned]
        if missing:
            raise FitError(f"no learned step size for {missing[0]}; adapt what meta-training adapted")
        for name in claim.names:
            wanted, given = tuple(self.net.get_parameter(name).shape), tuple(learned[name].shape)
            if given != wanted:
                raise FitError(
                    f"learned step sizes of shape {given} for {name}, which is {wanted} here; give samples of as many "
                    f"classes as in meta-training, or method='prototypes'"
                )
        like = next(self.net.parameters())
        return {own: learned[name].to(like) for own, name in zip(claim.adapted, claim.names, strict=True)}

    @torch.no_grad()
    def logits(self, changed: Mapping[str, Tensor], x: Tensor, support_x: Tensor) -> Tensor:
        """Every exit's logits ``[b e k]`` for ``x [b ...]`` with the parameters that ``support_x [n ...]`` has
        ``changed``.

        With ``bn="task"`` samples are normalized by the statistics of ``support_x``, as in the net that `adapt` gives.
        """
        named = {self.own_names[name]: tensor for name, tensor in changed.items()}
        if self.config.bn == "task":
            with evaluating(self.net):
                statistics = statistics_of(self.every_exit, named, support_x)
                logits_e = called_with(self.every_exit, {**named, **statistics}, (x,))
        else:
            with self.norms.ready():
                logits_e = self.norms.call(self.every_exit, named, (x,), self.config.steps)
        return torch.stack(logits_e, dim=1).float()


def _claims(net: DynamicNet, adapts: Adapts) -> tuple[Claim, ...]:
    """What each task steps on. One net has one trunk: exits that would all change it are one task, their losses added
    up, or each would step from the start and undo what the others did."""
    owned = ownership(net, adapts=adapts)
    adapted = [name for claim in owned.claims for name in claim.adapts]
    if len(set(adapted)) < len(adapted):
        owned = ownership(net, [range(net.num_exits)], adapts=adapts)
    return separate(net, owned)


def careful_steps(problem: Problem, start: Mapping[str, Tensor], steps: int) -> dict[str, Tensor]:
    """`steps_on_support` without the graph, each step halved (up to `HALVINGS` times) until the loss does not rise.

    Class means make classifiers whose size depends on that of the embeddings, and no step size fits all of them.
    """
    parameters = dict(start)
    for step in range(steps):
        logits_e = problem.norms.call(problem.learner, parameters, problem.support, step)
        loss = loss_of(logits_e, problem.support_y)
        wanted = [parameters[name] for name in problem.adapted]
        grads = torch.autograd.grad(loss, wanted, allow_unused=True)
        for halving in range(HALVINGS):
            moved = {
                name: (parameters[name] - problem.rate(name) / 2**halving * grad).detach().requires_grad_()
                for name, grad in zip(problem.adapted, grads, strict=True)
                if grad is not None
            }
            ahead = {**parameters, **moved}
            with torch.no_grad():
                then = loss_of(problem.norms.call(problem.learner, ahead, problem.support, step), problem.support_y)
            if then <= loss:
                parameters = ahead
                break
    return parameters


def _statistics(start: MetaStart, steps: int) -> StepStatistics:
    """The per-step statistics of meta-training, for as many steps."""
    statistics = StepStatistics(start.net, steps)
    if start.statistics is None or any(len(t) != steps + 1 for t in start.statistics.values()):
        gathered = "none" if start.statistics is None else f"{start.inner.steps} steps'"
        raise FitError(
            f"bn='per_step' reads the statistics that meta-training gathered ({gathered} here, {steps} steps "
            f"asked); adapt a start that was trained so, by as many steps"
        )
    for step in range(steps + 1):
        statistics.put(step, {name: tensor[step] for name, tensor in start.statistics.items()})
    return statistics
