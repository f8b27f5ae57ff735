"""Times every stage, exit and gather of a net, for `dynext.runtime.cost.CostTable`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from dynext.errors import PolicyError
from dynext.graph.stage import LiveTensors
from dynext.modules.modes import evaluating
from dynext.net.dynamic_net import DynamicNet
from dynext.runtime.cost import CostTable
from dynext.usual_modes import in_usual_modes

T = TypeVar("T")
NUM_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LONG_MS = 500.0
"""Once the stages take this long for a batch, larger ones are not timed: by then time grows with the samples."""


@in_usual_modes
@torch.inference_mode()
def measure(net: DynamicNet, *, rows: Sequence[int] = NUM_SAMPLES, budget_ms: float = 60.0) -> CostTable:
    """Time every stage, exit and gather of ``net`` for each number of samples in ``rows``, on its own device and dtype.

    Medians over repeats that fill about ``budget_ms`` each (three at least, two of long ones), after a warm-up. Numbers
    of samples are left out once a batch takes longer than `LONG_MS`. The net is timed in evaluation.

    Raises:
        PolicyError: ``rows`` are not numbers of samples from 1, ascending.
    """
    if not rows or min(rows) < 1 or list(rows) != sorted(set(rows)):
        raise PolicyError(f"samples {tuple(rows)}; give numbers of samples to time, ascending, such as (1, 8, 64)")
    with evaluating(net):
        return _measured(net, rows, budget_ms)


def _measured(net: DynamicNet, num_samples: Sequence[int], budget_ms: float) -> CostTable:
    like = next(net.parameters())
    generator = torch.Generator().manual_seed(0)
    stages = net.staged.stages
    stage_ms: list[list[float]] = [[] for _ in stages]
    gather_ms: list[list[float]] = [[] for _ in stages]
    exit_ms: list[list[float]] = [[] for _ in net.exits]
    timed: list[int] = []
    for count in num_samples:
        x = torch.randn(count, *net.staged.input_shape, generator=generator).to(like)
        all_b = torch.arange(count, device=like.device)
        live: LiveTensors = (x,)
        for s, stage in enumerate(stages):
            given = live
            ms, live = _timed(lambda: stage(*given), like.device, budget_ms)  # noqa: B023
            stage_ms[s].append(ms)
            gather_ms[s].append(_timed(lambda: [t[all_b] for t in live], like.device, budget_ms / 4)[0])  # noqa: B023
            for e, exit in enumerate(net.exits):
                if exit.after == s:
                    tap = live[stage.tap]
                    exit_ms[e].append(_timed(lambda: exit(tap), like.device, budget_ms / 4)[0])  # noqa: B023
        timed.append(count)
        if sum(ms[-1] for ms in stage_ms) > LONG_MS:
            break
    return CostTable(
        rows=tuple(timed),
        stage_ms=tuple(map(tuple, stage_ms)),
        exit_ms=tuple(map(tuple, exit_ms)),
        gather_ms=tuple(map(tuple, gather_ms)),
        device=like.device.type,
        threads=torch.get_num_threads(),
    )


def _timed(work: Callable[[], T], device: torch.device, budget_ms: float) -> tuple[float, T]:
    """The median of the milliseconds, and what the work gives."""
    times: list[float] = []
    result = work()
    while len(times) < (2 if sum(times) > 2 * budget_ms else 3) or (sum(times) < budget_ms and len(times) < 50):
        _synchronize(device)
        began = time.perf_counter()
        work()
        _synchronize(device)
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times), result


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
