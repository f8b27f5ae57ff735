"""Tables whose costs are times: what chooses by MACs then chooses by the clock of one machine."""

from __future__ import annotations

from dataclasses import replace

from dynext.errors import PolicyError
from dynext.policy.table import ExitTable

NANOSECONDS = 1e6
"""A millisecond, in what a clocked table counts."""


def clocked(table: ExitTable) -> ExitTable:
    """``table`` with nanoseconds a row in the place of MACs, as they were measured at batch 1.

    Raises:
        PolicyError: the table holds no times, or its rows skipped stages.
    """
    table.check_whole("a budget in milliseconds")
    if table.trunk_ms_e is None or table.head_ms_e is None:
        raise PolicyError(
            f"the table of {table.rows} holds no measured times; measure the net (net.cost = dx.measure(net)) and "
            f"collect it again, or run `dynext bench DIR --write`"
        )
    return replace(
        table,
        trunk_macs_e=tuple(round(NANOSECONDS * ms) for ms in table.trunk_ms_e),
        head_macs_e=tuple(round(NANOSECONDS * ms) for ms in table.head_ms_e),
    )
