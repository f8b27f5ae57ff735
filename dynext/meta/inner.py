"""The inner loop: a few gradient steps on a task's support samples, written so that the outer gradient goes through
them.

Shapes: b samples, k classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dynext.errors import FitError
from dynext.meta.exit_ownership import Adapts
from dynext.meta.functional import Learner, Live
from dynext.meta.norms import Norm, Norms

Rule = Literal["second_order", "first_order", "reptile", "prototypes"]


@dataclass(frozen=True, kw_only=True)
class InnerLoop:
    """How a task is learned from its support samples. `InnerLoop.of` knows the published ones by name."""

    steps: int = 3
    lr: float = 0.1
    """Step size; where it is learned, what it starts from."""
    rule: Rule = "second_order"
    """How the outer gradient sees the inner steps: through them, or past them (first-order MAML); ``"reptile"`` moves
    to where they lead; ``"prototypes"`` takes no step, class means classify."""
    adapts: Adapts = "head"
    bn: Norm = "task"
    learned_lr: bool = False
    """Meta-SGD: a learned step size for each number in each adapted parameter."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("rule", self.rule, get_args(Rule)),
            ("adapts", self.adapts, get_args(Adapts)),
            ("bn", self.bn, get_args(Norm)),
        ):
            if value not in known:
                raise FitError(f"{name}={value!r}; give one of {', '.join(known)}")
        if self.steps < (self.rule != "prototypes"):
            raise FitError(f"steps={self.steps}; an inner loop takes 1 or more (rule='prototypes' takes none)")
        if not self.lr > 0:
            raise FitError(f"lr={self.lr}; give a positive step size")
        if self.learned_lr and self.rule in ("reptile", "prototypes"):
            raise FitError(f"no gradient reaches step sizes with rule={self.rule!r}; leave learned_lr out")

    @classmethod
    def of(cls, name: str, **changes: Any) -> InnerLoop:
        """``"heads"`` (the default: heads alone), ``"maml"``, ``"first_order"``, ``"reptile"``, ``"anil"``,
        ``"meta_sgd"`` or ``"prototypes"``, with ``changes``.

        Raises:
            FitError: none of these.

        Source: MAML, Finn et al., ICML 2017, arXiv:1703.03400; Reptile, Nichol et al. 2018, arXiv:1803.02999; ANIL,
        Raghu et al., ICLR 2020, arXiv:1909.09157; Meta-SGD, Li et al. 2017, arXiv:1707.09835; prototypical networks,
        Snell et al., NeurIPS 2017, arXiv:1703.05175.
        """
        if name not in NAMED:
            raise FitError(f"no inner loop {name!r}; give one of {', '.join(NAMED)}")
        return replace(cls(**{**NAMED[name], **changes}))


NAMED: Mapping[str, Mapping[str, Any]] = {
    "heads": {},
    "maml": {"adapts": "used"},
    "first_order": {"adapts": "used", "rule": "first_order"},
    "reptile": {"adapts": "used", "rule": "reptile"},
    "anil": {"adapts": "classifier"},
    "meta_sgd": {"adapts": "used", "learned_lr": True},
    "prototypes": {"rule": "prototypes", "steps": 0},
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """One task made ready: what is run again and again, which of its parameters change, and on what.

    ``support`` and ``query`` are what the learner expects: samples, or the live tensors where it begins.
    """

    learner: Learner
    adapted: tuple[str, ...]
    """Names in the learner."""
    support: Live
    support_y: Tensor
    query: Live
    query_y: Tensor
    norms: Norms
    lr: Mapping[str, Tensor] | float
    """Of each adapted parameter, by its name in the learner."""

    def rate(self, name: str) -> Tensor | float:
        return self.lr if isinstance(self.lr, float) else self.lr[name]


def loss_of(logits_e: Sequence[Tensor], y_b: Tensor) -> Tensor:
    """Cross-entropy, summed over the task's exits."""
    return torch.stack([F.cross_entropy(logits, y_b) for logits in logits_e]).sum()


def steps_on_support(problem: Problem, start: Mapping[str, Tensor], steps: int, *, through: bool) -> dict[str, Tensor]:
    """The learner's parameters after ``steps`` gradient steps from ``start``.

    ``through`` keeps the graph of the gradients (second order); without it they are constants, and the outer gradient
    passes the steps by.

    Source: MAML, Finn et al., ICML 2017, arXiv:1703.03400, eq. 1; first order as in its section 5.2.
    """
    parameters = dict(start)
    for step in range(steps):
        logits_e = problem.norms.call(problem.learner, parameters, problem.support, step)
        loss = loss_of(logits_e, problem.support_y)
        wanted = [parameters[name] for name in problem.adapted]
        grads = torch.autograd.grad(loss, wanted, create_graph=through, allow_unused=True)
        for name, grad in zip(problem.adapted, grads, strict=True):
            if grad is not None:
                parameters[name] = parameters[name] - problem.rate(name) * grad
    return parameters
