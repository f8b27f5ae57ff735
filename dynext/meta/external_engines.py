"""The same tasks through ``higher`` and ``learn2learn``; both are imported when they are asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from dynext.errors import FitError
from dynext.meta.inner import InnerLoop, Problem, loss_of

INSTALL = "pip install --no-deps --config-settings=--build-option=build_ext learn2learn==0.2.0"
"""Its shipped C code does not compile on Python 3.11 and later; this has it generated anew."""

UNNEEDED = ("gym", "vision", "text", "data")
"""Parts of learn2learn that pull in packages nobody needs here."""


def with_higher(problem: Problem, inner: InnerLoop) -> Tensor:
    """``higher``'s patched module and differentiable SGD.

    Source: Grefenstette et al. 2019, arXiv:1910.01727. One group of parameters each, so that step sizes may be tensors.
    """
    import higher

    learner = problem.learner
    names = dict(learner.named_parameters())
    groups = [{"params": [names[name]], "lr": 1.0} for name in problem.adapted]
    rates = {"lr": [problem.rate(name) for name in problem.adapted]}
    second = inner.rule == "second_order"
    with (
        _patchable(learner),
        higher.innerloop_ctx(
            learner, torch.optim.SGD(groups), copy_initial_weights=False, override=rates, track_higher_grads=True
        ) as (patched, optimizer),
    ):
        for _ in range(inner.steps):
            loss = loss_of(patched(*problem.support), problem.support_y)
            optimizer.step(loss, grad_callback=None if second else _constants)
        return loss_of(patched(*problem.query), problem.query_y)


@contextmanager
def _patchable(learner: nn.Module) -> Iterator[None]:
    """Both libraries make modules of each module's class, which does not work for those of torch.fx.

    Those that only hold others are of the type ``nn.Module`` itself, traced ones of a type that makes types anew.
    Meanwhile they are of a plain class with the same ``forward``.
    """
    strange = [(m, type(m)) for m in learner.modules() if type(m) is nn.Module or isinstance(m, GraphModule)]
    try:
        for m, kind in strange:
            m.__class__ = type("Traced", (nn.Module,), {"forward": kind.forward})
        yield
    finally:
        for m, kind in strange:
            m.__class__ = kind


def _constants(grads: list[Tensor | None]) -> list[Tensor | None]:
    """First order: the gradients without their graph. (higher's own switch for that cuts the tie to the start too.)"""
    return [None if grad is None else grad.detach() for grad in grads]


def with_learn2learn(problem: Problem, inner: InnerLoop) -> Tensor:
    """learn2learn's cloned module and differentiable update.

    Source: Arnold et al. 2020, arXiv:2008.12284. Its ``MAML.adapt`` steps on all parameters; ours gives the ones that a
    task adapts, by the same two functions.
    """
    l2l = learn2learn()
    with _patchable(problem.learner):
        clone = l2l.clone_module(problem.learner)
    second = inner.rule == "second_order"
    for _ in range(inner.steps):
        loss = loss_of(clone(*problem.support), problem.support_y)
        there = dict(clone.named_parameters())
        wanted = [there[name] for name in problem.adapted]
        grads = torch.autograd.grad(loss, wanted, retain_graph=second, create_graph=second, allow_unused=True)
        for name, grad in zip(problem.adapted, grads, strict=True):
            if grad is not None:
                there[name].update = -problem.rate(name) * grad
        clone = l2l.update_module(clone)
    return loss_of(clone(*problem.query), problem.query_y)


def learn2learn() -> ModuleType:
    """The library, without its parts for games, pictures, text and data sets.

    Raises:
        FitError: it is not installed, and by which command it is.
    """
    if "learn2learn" in sys.modules:
        return sys.modules["learn2learn"]
    standing_in = [f"learn2learn.{part}" for part in UNNEEDED if f"learn2learn.{part}" not in sys.modules]
    for name in standing_in:
        sys.modules[name] = ModuleType(name)
    try:
        import learn2learn as library
    except ImportError as error:
        raise FitError(f"engine 'learn2learn' needs the package ({error}): {INSTALL}") from error
    finally:
        for name in standing_in:
            sys.modules.pop(name, None)
    return library
