"""Measured milliseconds of stages and exits by the number of samples, on one machine.

Compaction pays only when the samples that left save more time than gathering the others costs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dynext.brief import short_repr
from dynext.errors import PolicyError


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Median milliseconds: stages ``[s][r]``, exits ``[e - 1][r]``, gathers after a stage ``[s][r]``.

    ``rows`` are the r numbers of samples that were timed; what lies between is interpolated.
    """

    __repr__ = short_repr

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
                f"a cost table for {self.rows} samples with lines of {sorted(widths)} entries; measure it anew"
            )

    def stage(self, s: int, count: int) -> float:
        """Milliseconds of stage ``s`` on ``count`` samples."""
        return self._between(self.stage_ms[s], count)

    def exit(self, e: int, count: int) -> float:
        """Milliseconds of exit ``e`` on ``count`` samples; the last exit costs nothing beyond its stages."""
        return self._between(self.exit_ms[e], count) if e < len(self.exit_ms) else 0.0

    def static(self, count: int) -> float:
        """Milliseconds of all stages on ``count`` samples."""
        return sum(self.stage(s, count) for s in range(len(self.stage_ms)))

    def compaction_pays(self, after: int, until: int, *, carried: int, waiting: int) -> bool:
        """Whether the stages behind ``after`` up to ``until`` save more on ``waiting`` samples than the gather
        costs.
        """
        later = range(after + 1, until + 1)
        saved = sum(self.stage(s, carried) - self.stage(s, waiting) for s in later)
        return saved > self._between(self.gather_ms[after], waiting)

    def skipping_pays(self, s: int, *, carried: int, running: int) -> bool:
        """Whether stage ``s`` on the ``running`` of ``carried`` samples saves more than gathering them, copying all
        once and writing them back, each at the price of a gather (what goes into such a stage is as large as what comes
        out).
        """
        moved = 2 * self._between(self.gather_ms[s], running) + self._between(self.gather_ms[s], carried)
        return self.stage(s, carried) - self.stage(s, running) > moved

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> CostTable:
        tables = {k: tuple(map(tuple, saved[k])) for k in ("stage_ms", "exit_ms", "gather_ms")}
        return cls(rows=tuple(saved["rows"]), device=saved["device"], threads=saved["threads"], **tables)

    def _between(self, ms: Sequence[float], count: int) -> float:
        right = bisect_left(self.rows, count)
        if right == len(self.rows):  # beyond the table: time grows with their number
            return ms[-1] * count / self.rows[-1]
        if self.rows[right] == count or right == 0:
            return ms[right]
        low, high = self.rows[right - 1], self.rows[right]
        share = (count - low) / (high - low)
        return ms[right - 1] + share * (ms[right] - ms[right - 1])
