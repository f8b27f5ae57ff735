"""Who differentiates through the inner loop: our own loop, all episodes at once (vmap), or the libraries of the field.

An engine is given a `Problem` and an `InnerLoop` and gives a loss: its value is the loss on the query samples, its
gradient is the meta-gradient. All engines give the same gradients (``benchmarks/meta_engines.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import torch
from torch import Tensor

from dynext.errors import FitError
from dynext.meta.external_engines import with_higher, with_learn2learn
from dynext.meta.inner import InnerLoop, Problem, loss_of, steps_on_support
from dynext.plugins import reference

Engine = Callable[[Problem, InnerLoop], Tensor]
"""``engine(problem, inner)`` takes ``inner.steps`` steps on ``problem.support`` from the learner's own weights, at
``problem.rate(name)``, on the parameters named in ``problem.adapted``, and gives the loss on ``problem.query`` after
them: one number whose gradient reaches the learner's weights. `dynext.meta.inner` has what it needs
(`steps_on_support`, `loss_of`)."""


def own_loop(problem: Problem, inner: InnerLoop) -> Tensor:
    """``torch.func.functional_call`` and ``torch.autograd.grad``, nothing else."""
    start = dict(problem.learner.named_parameters())
    adapted = steps_on_support(problem, start, inner.steps, through=inner.rule == "second_order")
    logits_e = problem.norms.call(problem.learner, adapted, problem.query, inner.steps)
    return loss_of(logits_e, problem.query_y)


def reptile(problem: Problem, inner: InnerLoop) -> Tensor:
    """Where the inner steps lead, as a loss: its gradient is ``theta - theta'``.

    Source: Reptile, Nichol et al. 2018, arXiv:1803.02999, algorithm 1. The steps are taken on support samples as in the
    other rules; the value is the query loss after them.
    """
    start = {name: p.detach().requires_grad_() for name, p in problem.learner.named_parameters()}
    led = steps_on_support(problem, start, inner.steps, through=False)
    with torch.no_grad():
        value = loss_of(problem.norms.call(problem.learner, led, problem.query, inner.steps), problem.query_y)
    theta = dict(problem.learner.named_parameters())
    toward = [((start[n] - led[n]).detach() * theta[n]).sum() for n in problem.adapted if theta[n].requires_grad]
    linear = torch.stack(toward).sum()
    return value + linear - linear.detach()


ENGINES: Mapping[str, Engine] = MappingProxyType(
    {"dynext": own_loop, "higher": with_higher, "learn2learn": with_learn2learn, "vmap": own_loop}
)
"""For one episode; ``"vmap"`` takes several at once (`dynext.meta.vmap.vectorized`)."""


def engine_named(name: str | Engine, inner: InnerLoop) -> Engine:
    """The engine ``name`` for ``inner``, or one's own, checked.

    Raises:
        FitError: no such engine, or one that cannot do what ``inner`` asks.
    """
    if not callable(name) and name not in ENGINES:
        raise FitError(f"no engine {name!r}; give one of {', '.join(ENGINES)}, or a function (problem, inner) -> loss")
    if inner.rule == "prototypes":
        raise FitError("prototypes take no gradient step; they need no engine")
    if callable(name):
        return _one_number(name)
    if name != "dynext" and (inner.rule == "reptile" or inner.bn == "per_step"):
        asked = "rule='reptile'" if inner.rule == "reptile" else "bn='per_step'"
        raise FitError(f"{asked} is done by our own loop alone; leave engine={name!r} out")
    return reptile if inner.rule == "reptile" else ENGINES[name]


def _one_number(engine: Engine) -> Engine:
    def checked(problem: Problem, inner: InnerLoop) -> Tensor:
        loss = engine(problem, inner)
        learnable = isinstance(loss, Tensor) and (loss.requires_grad or not torch.is_grad_enabled())
        if not learnable or loss.numel() != 1:
            told = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise FitError(
                f"engine {reference(engine)} gave {told}; give the query loss after the inner steps, one number with a "
                f"gradient"
            )
        return loss.reshape(())

    return checked


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """Inside, attention is computed by the kernel whose gradient has a gradient."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield
