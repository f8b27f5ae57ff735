"""From a few labelled samples to parameters that know them: what adapting and evaluating on episodes share.

Nothing here changes a net. Shapes: b samples, e exits, k classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dynext.errors import FitError
from dynext.meta.exit_ownership import Adapts, Claim, ownership
from dynext.meta.exit_tasks import separate
from dynext.meta.functional import Learner, Live, Trunk, called_with
from dynext.meta.inner import InnerLoop, Problem, loss_of, steps_on_support
from dynext.meta.loss import Part, part_of
from dynext.meta.norms import Norms, StepStatistics, statistics_of
from dynext.meta.prototypes import classifier_of, embeddings, prototype_parameters
from dynext.meta.start import MetaStart
from dynext.modules.modes import evaluating
from dynext.net.dynamic_net import DynamicNet

Method = Literal["prototypes", "head", "classifier", "owned", "used"]
"""What adapting changes: classifiers to class means without a gradient, or by gradient steps one of `Adapts`."""

Classifiers = Literal["prototypes", "kept"]
"""What gradient steps start from: class means of the support, or the classifiers as they are."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """How samples are learned."""

    method: Method
    steps: int
    lr: float
    bn: Literal["task", "frozen", "per_step"]
    classifiers: Classifiers
    careful: bool = False
    """Halve a step that makes the loss on the support samples larger: step sizes that nobody has learned."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("method", self.method, get_args(Method)),
            ("classifiers", self.classifiers, get_args(Classifiers)),
            ("bn", self.bn, ("task", "frozen", "per_step")),
        ):
            if value not in known:
                raise FitError(f"{name}={value!r}; give one of {', '.join(known)}")
        if self.steps < 0 or not self.lr > 0:
            raise FitError(f"steps={self.steps}, lr={self.lr}; give 0 or more steps of a positive size")


HALVINGS = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """Samples as the unchanging part of the net gives them. With BatchNorms that do not look at the other samples, some
    of them are what the same samples alone would give.
    """

    embedding_e: tuple[Tensor, ...]
    """What each exit's classifier sees ``[b d]``; empty where no class means are taken."""
    lives: Mapping[int, Live]
    """What is live before the stages where tasks begin."""

    def only(self, there_b: Tensor) -> Seen:
        """Of some samples."""
        lives = {begin: tuple(tensor[there_b] for tensor in live) for begin, live in self.lives.items()}
        return Seen(embedding_e=tuple(embedding[there_b] for embedding in self.embedding_e), lives=lives)


class Pupil:
    """A net, where to start from, and a way to learn; `learned` gives the parameters after a set of samples."""

    def __init__(self, start: MetaStart, way: Way) -> None:
        self.start, self.way, self.net = start, way, start.net
        net = self.net
        self.everything = Learner(net, range(net.num_exits))
        inside = {id(p): name for name, p in self.everything.named_parameters()}
        self.own_names = {name: inside[id(p)] for name, p in net.named_parameters() if id(p) in inside}
        statistics = None
        if way.bn == "per_step":
            statistics = _statistics(start, way)
        self.norms = Norms(net, way.bn, statistics)
        self.parts: tuple[Part, ...] = ()
        if way.method != "prototypes" and way.steps:
            self.parts = tuple(part_of(net, claim) for claim in _claims(net, way.method))

    def learned(self, x: Tensor, y_b: Tensor) -> dict[str, Tensor]:
        """What samples ``x [b ...]`` and labels ``[b]`` change, by the parameters' names in the net."""
        return self.learned_from(self.look(x), y_b)

    @torch.no_grad()
    def look(self, x: Tensor) -> Seen:
        """What learning from samples ``x [b ...]`` needs of that part of the net which it leaves as it is."""
        embedding_e: list[Tensor] = []
        lives: dict[int, Live] = {}
        with self.norms.ready():
            if self.way.method == "prototypes" or self.way.classifiers == "prototypes":
                layers = [classifier_of(self.net, e) for e in self.everything.numbers]
                embedding_e = embeddings(self.everything, layers, self.norms, x, 0)
            if self.parts:
                trunk = Trunk(self.net, [part.learner.begin for part in self.parts])
                lives = dict(zip(trunk.begins, self.norms.call(trunk, {}, (x,), 0), strict=True))
        return Seen(embedding_e=tuple(embedding_e), lives=lives)

    def learned_from(self, seen: Seen, y_b: Tensor) -> dict[str, Tensor]:
        """What the samples that were ``seen`` and their labels ``[b]`` change, by the parameters' names in the net."""
        changed: dict[str, Tensor] = {}
        with self.norms.ready(), torch.no_grad():
            if seen.embedding_e:
                changed |= prototype_parameters(self.net, seen.embedding_e, y_b)
            if self.parts:
                changed |= self._stepped(seen.lives, y_b, changed)
        return {name: tensor.detach() for name, tensor in changed.items()}

    def _stepped(self, lives: Mapping[int, Live], y_b: Tensor, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for part in self.parts:
            own = {id(p): name for name, p in self.net.named_parameters()}
            names = {name: own[id(p)] for name, p in part.learner.named_parameters()}
            begun = {
                name: before.get(names[name], p).detach().requires_grad_(name in part.adapted)
                for name, p in part.learner.named_parameters()
            }
            live = lives[part.learner.begin]
            problem = Problem(
                learner=part.learner, adapted=part.adapted, support=live, support_y=y_b, query=live, query_y=y_b,
                norms=self.norms, lr=self._rates(part),
            )  # fmt: skip
            with torch.enable_grad():
                if self.way.careful:
                    led = careful_steps(problem, begun, self.way.steps)
                else:
                    led = steps_on_support(problem, begun, self.way.steps, through=False)
            found |= {names[name]: led[name] for name in part.adapted}
        return found

    def _rates(self, part: Part) -> Mapping[str, Tensor] | float:
        learned = self.start.step_sizes
        if learned is None:
            return self.way.lr
        missing = [name for name in part.names if name not in learned]
        if missing:
            raise FitError(f"no learned step size for {missing[0]}; adapt what meta-training adapted")
        for name in part.names:
            wanted, found = tuple(self.net.get_parameter(name).shape), tuple(learned[name].shape)
            if found != wanted:
                raise FitError(
                    f"learned step sizes of shape {found} for {name}, which is {wanted} here; give samples of as many "
                    f"classes as in meta-training, or method='prototypes'"
                )
        like = next(self.net.parameters())
        return {own: learned[name].to(like) for own, name in zip(part.adapted, part.names, strict=True)}

    @torch.no_grad()
    def answers(self, changed: Mapping[str, Tensor], x: Tensor, known: Tensor) -> Tensor:
        """Every exit's logits ``[b e k]`` with the parameters that samples ``known [n ...]`` have ``changed``.

        With ``bn="task"`` samples are normalized by the statistics of ``known``, as in the net that `adapt` gives.
        """
        named = {self.own_names[name]: tensor for name, tensor in changed.items()}
        if self.way.bn == "task":
            with evaluating(self.net):
                logits_e = called_with(self.everything, {**named, **statistics_of(self.everything, named, known)}, (x,))
        else:
            with self.norms.ready():
                logits_e = self.norms.call(self.everything, named, (x,), self.way.steps)
        return torch.stack(logits_e, dim=1).float()


def _claims(net: DynamicNet, adapts: Adapts) -> tuple[Claim, ...]:
    """What each task steps on. One net has one trunk: exits that would all change it are one task, their losses added
    up, or each would step from the start and undo what the others did."""
    found = ownership(net, adapts=adapts)
    adapted = [name for claim in found.claims for name in claim.adapts]
    if len(set(adapted)) < len(adapted):
        found = ownership(net, [range(net.num_exits)], adapts=adapts)
    return separate(net, found)


def careful_steps(problem: Problem, begun: Mapping[str, Tensor], steps: int) -> dict[str, Tensor]:
    """`steps_on_support` without the graph, each step halved (up to `HALVINGS` times) until the loss does not rise.

    Class means make classifiers whose size depends on that of the embeddings, and no step size fits all of them.
    """
    parameters = dict(begun)
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


def _statistics(start: MetaStart, way: Way) -> StepStatistics:
    """The per-step statistics of meta-training, for as many steps."""
    found = StepStatistics(start.net, way.steps)
    if start.statistics is None or any(len(t) != way.steps + 1 for t in start.statistics.values()):
        gathered = "none" if start.statistics is None else f"{start.inner.steps} steps'"
        raise FitError(
            f"bn='per_step' reads the statistics that meta-training gathered ({gathered} here, {way.steps} steps "
            f"asked); adapt a start that was trained so, by as many steps"
        )
    for step in range(way.steps + 1):
        found.put(step, {name: tensor[step] for name, tensor in start.statistics.items()})
    return found


def as_start(net: DynamicNet | MetaStart) -> MetaStart:
    """A net of any origin as a start, its inner loop the default one."""
    return net if isinstance(net, MetaStart) else MetaStart(net=net, inner=InnerLoop())


def way_of(
    start: MetaStart,
    meta_learned: bool,
    method: Method | None,
    steps: int | None,
    lr: float | None,
    bn: Literal["task", "frozen", "per_step"] | None,
    classifiers: Classifiers | None,
) -> Way:
    """What was asked for, and where nothing was: what a meta-learned start was learned for, else class means alone.

    Gradient steps that were meta-trained on some statistics take these: an inner loop learned on those of the samples
    at hand leads nowhere on others. The default is the net's running statistics else.
    """
    inner = start.inner
    if lr is not None and start.step_sizes is not None:
        raise FitError(f"lr={lr}, but this start has learned its own step sizes; leave lr out")
    # A start for class means has never trained its classifiers, nor a step size.
    for_steps = meta_learned and inner.rule != "prototypes"
    if meta_learned:
        own: Method = "prototypes" if inner.rule == "prototypes" else inner.adapts
    else:
        own = "head" if steps else "prototypes"
    chosen = method or own
    if chosen == "prototypes" and (steps or lr is not None):
        told = f"steps={steps}" if steps else f"lr={lr}"
        raise FitError(f"{told}, but class means take none; give method='head' to go on from them by gradient")
    if chosen == "prototypes" and classifiers == "kept":
        raise FitError(
            "classifiers='kept', but class means replace classifiers; give steps, which go on from the net's own"
        )
    told_bn = bn or (inner.bn if for_steps and chosen != "prototypes" else "frozen")
    kept: Classifiers = classifiers or ("kept" if for_steps and chosen != "prototypes" else "prototypes")
    return Way(
        method=chosen,
        steps=0 if chosen == "prototypes" else inner.steps if steps is None else steps,
        lr=inner.lr if lr is None else lr,
        bn=told_bn,
        classifiers=kept,
        careful=not for_steps,
    )
