"""Where a conversion costs what it should save: heads as dear as a stage, milliseconds worse than the static net's."""

from __future__ import annotations

from dynext.net.dynamic_net import DynamicNet
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable, simulate

MOST = 0.1
"""Share of the static net's MACs above which one head is told of."""


def cost_notes(net: DynamicNet, policy: Policy, table: ExitTable) -> list[str]:
    """What somebody who counts on saving should know, a sentence each; nothing where all is as it should be."""
    notes = []
    for exit in net.exits:
        share = exit.macs / max(net.staged.macs, 1)
        if share > MOST:
            notes.append(
                f"the head after {exit.name} costs {share:.0%} of the static net's MACs ({exit.macs:,}), more than "
                f"{MOST:.0%}; attach a narrower one: heads=dx.default_heads({net.num_classes}, hidden=8) or "
                f"dx.heads.pooled_heads({net.num_classes})"
            )
    ms = simulate(table, policy).ms
    if ms is not None and table.trunk_ms_e is not None and ms > table.trunk_ms_e[-1]:
        notes.append(
            f"by this machine's stage times a sample takes {ms:.3f} ms, and {table.trunk_ms_e[-1]:.3f} ms without any "
            f"exit: MACs are saved here, time is not; try fewer exits (exits=dx.Exits(after=...)) or narrower heads"
        )
    return notes
