"""Wall-clock, side by side: the static net and the dynamic run on the same samples, in turn, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynext.errors import SourceError
from dynext.modules.modes import evaluating
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.policy import Policy
from dynext.usual_modes import in_usual_modes


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds per batch of ``batch`` samples (means at batch 1, where samples differ; else medians), and their
    ratio.
    """

    batch: int
    static_ms: float
    dynamic_ms: float
    speedup: float


@in_usual_modes
@torch.inference_mode()
def side_by_side(
    static: nn.Module,
    net: DynamicNet,
    policy: Policy,
    x: Tensor,
    *,
    batches: Sequence[int] = (1, 64),
    budget_s: float = 4.0,
) -> tuple[Timing, ...]:
    """Time ``static`` and ``net.run`` with ``policy`` in turn on successive batches of ``x [n ...]``.

    For each batch size, pairs are timed for about ``budget_s`` seconds (eight pairs at least), going round ``x`` where
    it is short. At batch 1 easy samples cost less than hard ones and the mean is what a user pays; above, the median
    keeps a noisy machine out of the figure.

    Raises:
        SourceError: no samples.
    """
    if not len(x):
        raise SourceError("no samples to time on; give at least one")
    timings = []
    with evaluating(static), evaluating(net):
        for batch in batches:
            pairs = _pairs(static, lambda batch_x: net.run(batch_x, policy), x, batch, budget_s)
            static_s, dynamic_s = ([pair[i] for pair in pairs] for i in (0, 1))
            middle = statistics.fmean if batch == 1 else statistics.median
            timings.append(
                Timing(
                    batch=batch,
                    static_ms=1000 * middle(static_s),
                    dynamic_ms=1000 * middle(dynamic_s),
                    speedup=middle(static_s) / middle(dynamic_s),
                )
            )
    return tuple(timings)


def _pairs(
    first: Callable[[Tensor], object], second: Callable[[Tensor], object], x: Tensor, batch: int, budget_s: float
) -> list[tuple[float, float]]:
    pairs: list[tuple[float, float]] = []
    began = time.perf_counter()
    while len(pairs) < 10 or time.perf_counter() - began < budget_s:
        start = len(pairs) * batch
        batch_x = x[torch.arange(start, start + batch, device=x.device) % len(x)]
        # Whoever goes first in a pair pays for cold caches: take turns.
        if len(pairs) % 2:
            b, a = _seconds(second, batch_x), _seconds(first, batch_x)
        else:
            a, b = _seconds(first, batch_x), _seconds(second, batch_x)
        pairs.append((a, b))
    return pairs[2:]  # warm-up


def _seconds(work: Callable[[Tensor], object], batch_x: Tensor) -> float:
    if batch_x.is_cuda:
        torch.cuda.synchronize(batch_x.device)
    began = time.perf_counter()
    work(batch_x)
    if batch_x.is_cuda:
        torch.cuda.synchronize(batch_x.device)
    return time.perf_counter() - began
