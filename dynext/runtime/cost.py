"""Measured milliseconds of stages and exits by the number of rows, on one machine.

Compaction pays only when the rows that left save more than gathering the others costs; this table knows.
"""

from __future__ import annotations

import statistics
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from dynext.errors import PolicyError
from dynext.modules.modes import evaluating

if TYPE_CHECKING:
    from dynext.net.dynamic_net import DynamicNet

T = TypeVar("T")
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LONG_MS = 500.0
"""Once the stages take this long for a batch, larger ones are not timed: by then time grows with the rows."""


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Median milliseconds: stages ``[s][r]``, exits ``[e - 1][r]``, gathers after a stage ``[s][r]``.

    ``rows`` are the r numbers of rows that were timed; what lies between is interpolated.
    """

    rows: tuple[int, ...]
    stage_ms: tuple[tuple[float, ...], ...]
    exit_ms: tuple[tuple[float, ...], ...]
    gather_ms: tuple[tuple[float, ...], ...]
    device: str
    threads: int

    def __post_init__(self) -> None:
        widths = {len(line) for table in (self.stage_ms, self.exit_ms, self.gather_ms) for line in table}
        if widths - {len(self.rows)} or list(self.rows) != sorted(set(self.rows)):
            raise PolicyError(
                f"cost table with rows {self.rows} and lines of {sorted(widths)} entries; measure it anew"
            )

    def stage(self, s: int, rows: int) -> float:
        """Milliseconds of stage ``s`` on ``rows`` rows."""
        return self._between(self.stage_ms[s], rows)

    def exit(self, e: int, rows: int) -> float:
        """Milliseconds of exit ``e`` on ``rows`` rows; the last exit costs nothing beyond its stages."""
        return self._between(self.exit_ms[e], rows) if e < len(self.exit_ms) else 0.0

    def static(self, rows: int) -> float:
        """Milliseconds of all stages on ``rows`` rows."""
        return sum(self.stage(s, rows) for s in range(len(self.stage_ms)))

    def compaction_pays(self, after: int, until: int, *, carried: int, waiting: int) -> bool:
        """Whether the stages behind ``after`` up to ``until`` save more on ``waiting`` rows than the gather costs."""
        later = range(after + 1, until + 1)
        saved = sum(self.stage(s, carried) - self.stage(s, waiting) for s in later)
        return saved > self._between(self.gather_ms[after], waiting)

    def skipping_pays(self, s: int, *, carried: int, running: int) -> bool:
        """Whether stage ``s`` on the ``running`` of ``carried`` rows saves more than gathering them, copying all once
        and writing them back, each at the price of a gather (what goes into such a stage is as large as what comes
        out)."""
        moved = 2 * self._between(self.gather_ms[s], running) + self._between(self.gather_ms[s], carried)
        return self.stage(s, carried) - self.stage(s, running) > moved

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> CostTable:
        tables = {k: tuple(map(tuple, found[k])) for k in ("stage_ms", "exit_ms", "gather_ms")}
        return cls(rows=tuple(found["rows"]), device=found["device"], threads=found["threads"], **tables)

    def _between(self, ms: Sequence[float], rows: int) -> float:
        right = bisect_left(self.rows, rows)
        if right == len(self.rows):  # beyond the table: time grows with the rows
            return ms[-1] * rows / self.rows[-1]
        if self.rows[right] == rows or right == 0:
            return ms[right]
        low, high = self.rows[right - 1], self.rows[right]
        share = (rows - low) / (high - low)
        return ms[right - 1] + share * (ms[right] - ms[right - 1])


@torch.inference_mode()
def measure(net: DynamicNet, *, rows: Sequence[int] = ROWS, budget_ms: float = 60.0) -> CostTable:
    """Time every stage, exit and gather of ``net`` for each number of rows, on its own device and dtype.

    Medians over repeats that fill about ``budget_ms`` each (three at least, two of long ones), after a warm-up. Numbers
    of rows are left out once a batch takes longer than `LONG_MS`. The net is timed in evaluation.

    Raises:
        PolicyError: ``rows`` are not one or more, ascending.
    """
    if not rows or min(rows) < 1 or list(rows) != sorted(set(rows)):
        raise PolicyError(f"rows {tuple(rows)}; give numbers of rows to time, ascending, such as (1, 8, 64)")
    with evaluating(net):
        return _measured(net, rows, budget_ms)


def _measured(net: DynamicNet, rows: Sequence[int], budget_ms: float) -> CostTable:
    like = next(net.parameters())
    generator = torch.Generator().manual_seed(0)
    stages = net.staged.stages
    table = {"stage_ms": [], "exit_ms": [], "gather_ms": []}  # type: dict[str, list[list[float]]]
    table["stage_ms"] = [[] for _ in stages]
    table["gather_ms"] = [[] for _ in stages]
    table["exit_ms"] = [[] for _ in net.exits]
    timed: list[int] = []
    for count in rows:
        x = torch.randn(count, *net.staged.input_shape, generator=generator).to(like)
        keep = torch.arange(count, device=like.device)
        live: tuple[Tensor, ...] = (x,)
        for s, stage in enumerate(stages):
            given = live
            ms, live = _timed(lambda: stage(*given), like.device, budget_ms)  # noqa: B023
            table["stage_ms"][s].append(ms)
            table["gather_ms"][s].append(_timed(lambda: [t[keep] for t in live], like.device, budget_ms / 4)[0])  # noqa: B023
            for e, exit in enumerate(net.exits):
                if exit.after == s:
                    tap = live[stage.tap]
                    table["exit_ms"][e].append(_timed(lambda: exit(tap), like.device, budget_ms / 4)[0])  # noqa: B023
        timed.append(count)
        if sum(line[-1] for line in table["stage_ms"]) > LONG_MS:
            break
    lines = {name: tuple(map(tuple, ms)) for name, ms in table.items()}
    return CostTable(rows=tuple(timed), device=like.device.type, threads=torch.get_num_threads(), **lines)


def _timed(work: Callable[[], T], device: torch.device, budget_ms: float) -> tuple[float, T]:
    """The median of the milliseconds, and what the work gives."""
    times: list[float] = []
    found = work()
    while len(times) < (2 if sum(times) > 2 * budget_ms else 3) or (sum(times) < budget_ms and len(times) < 50):
        _synchronize(device)
        began = time.perf_counter()
        work()
        _synchronize(device)
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times), found


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
