"""The frozen static net beside the net that is being trained: its answers, and which statistics both normalize by.

``"frozen"``: the BatchNorms of both use their running statistics. What is trained is exactly what will be used.
``"batch"``: the teacher's BatchNorms use the statistics of the batch at hand, as "@bn" does, and *lend* them to the
BatchNorms of the trunk that is trained. Samples that are not like the training set are then seen as the teacher sees
them best; and since the trunk does not normalize by its own batch, a weight that grows is not hidden by a statistic
that grows with it, and the drift can be seen. Neither way touches a buffer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from dynext.errors import FitError
from dynext.graph import StagedNet
from dynext.modules.modes import batch_norms, batch_statistics, evaluating

BesideMode = Literal["frozen", "batch"]

Moments = tuple[Tensor, Tensor]
"""Mean and variance ``[c]`` at the input of one call of one BatchNorm."""


@contextmanager
def recorded(module: nn.Module) -> Iterator[list[Moments]]:
    """Inside, each call of a BatchNorm of ``module`` appends the moments of its input."""
    moments: list[Moments] = []

    def measure(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        axes = [axis for axis in range(inputs[0].ndim) if axis != 1]
        var_c, mean_c = torch.var_mean(inputs[0].detach(), axes, correction=0)
        moments.append((mean_c, var_c))

    handles = [norm.register_forward_pre_hook(measure) for norm in batch_norms(module)]
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def lent(module: nn.Module, moments: Sequence[Moments]) -> Iterator[None]:
    """Inside, the BatchNorms of ``module``, in evaluation, normalize by ``moments``: one pair a call, in order.

    A second pass of samples begins again at the first pair.

    Raises:
        FitError: not as many calls a pass as pairs, or of other channels: the moments are another net's.
    """
    norms = batch_norms(module)
    own: list[tuple[Any, Any, Any]] = [(norm, norm.running_mean, norm.running_var) for norm in norms]
    calls = 0

    def lend(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        nonlocal calls
        mean_c, var_c = moments[calls % len(moments)] if moments else (None, None)
        if mean_c is None or mean_c.shape != norm.running_mean.shape:
            raise _other_net()
        norm.running_mean, norm.running_var = mean_c, var_c
        calls += 1

    handles = [norm.register_forward_pre_hook(lend) for norm in norms]
    try:
        yield
        if moments and (not calls or calls % len(moments)):
            raise _other_net()
    finally:
        for handle in handles:
            handle.remove()
        for norm, mean, var in own:
            norm.running_mean, norm.running_var = mean, var


def _other_net() -> FitError:
    return FitError(
        "the teacher's BatchNorms are not those of the net's trunk, so it cannot lend their statistics; "
        "use bn='frozen', or the teacher that the net was split from"
    )


class Answer(NamedTuple):
    """The teacher's logits ``[b k]``, and what stood at each of its cuts (none for a teacher that is not cut)."""

    logits: Tensor
    taps: list[Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Guide:
    """A private, frozen copy of the teacher, in evaluation, that answers the same samples as the net in training."""

    teacher: nn.Module
    bn: BesideMode

    @classmethod
    def of(cls, teacher: nn.Module, bn: BesideMode) -> Guide:
        """Raises FitError when there is no such ``bn``."""
        if bn not in get_args(BesideMode):
            raise FitError(f"bn={bn!r}; give 'frozen' (running statistics) or 'batch' (the teacher's, of each batch)")
        return cls(teacher=copy.deepcopy(teacher).eval().requires_grad_(False), bn=bn)

    @contextmanager
    def beside(self, trunk: nn.Module, x: Tensor) -> Iterator[Answer]:
        """The teacher's answer to ``x [b ...]``; inside, ``trunk`` is in evaluation and normalizes as the teacher."""
        teacher = self.teacher.to(x.device)
        if self.bn == "frozen":
            with torch.no_grad():
                answer = _answer(teacher, x)
            with evaluating(trunk):
                yield answer
            return
        with torch.no_grad(), batch_statistics(teacher), recorded(teacher) as moments:
            answer = _answer(teacher, x)
        with evaluating(trunk), lent(trunk, moments):
            yield answer


def _answer(teacher: nn.Module, x: Tensor) -> Answer:
    if not isinstance(teacher, StagedNet):
        return Answer(teacher(x), [])
    taps = []
    for stage, live in teacher.walk(x):
        taps.append(live[stage.tap])
    return Answer(live[0], taps[:-1])
