"""What aligning gave: the net, the heads beside it, and how it went."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from dynext.align.monitor import Snapshot, collapsed
from dynext.align.projection_heads import ProjectionHeads
from dynext.align.settings import Trunk
from dynext.brief import short_repr
from dynext.net.dynamic_net import DynamicNet
from dynext.train.drift import Drift


@dataclass(frozen=True, kw_only=True, eq=False)
class Alignment:
    """Aligned exits, what aligned them, and how it went."""

    __repr__ = short_repr

    net: DynamicNet
    """A net like the one that was given: nothing of the heads is in it."""
    space: ProjectionHeads = field(repr=False)
    """The heads, for classes that an exit has never seen; throw it away otherwise."""
    loss: str
    """The term's name; of one's own where it was defined."""
    weight: float
    trunk: Trunk
    steps: int
    rows: int
    """Trained on."""
    snapshots: tuple[Snapshot, ...]
    dropped: int
    """Steps on which the aligned term was left out, because it worked against classification."""
    drift: Drift | None
    """Of the last exit, on samples held out; ``None`` where the trunk was frozen."""
    seconds: float

    @property
    def collapsed_e(self) -> tuple[bool, ...]:
        """Which exits' projections were all but a point or a line in the end."""
        return collapsed(self.snapshots[-1]) if self.snapshots else (False,) * self.net.num_exits

    @property
    def conflicts(self) -> float:
        """Share of the snapshots at which alignment worked against classification."""
        return sum(snapshot.agreement < 0 for snapshot in self.snapshots) / max(len(self.snapshots), 1)

    def __str__(self) -> str:
        how = f"aligned by {self.loss} x {self.weight:g}, {self.trunk} trunk"
        lines = [f"{how}, {self.steps:,} steps, {self.rows:,} samples"]
        for shot in dict.fromkeys(self.snapshots[:1] + self.snapshots[-1:]):
            exits = "  ".join(f"{s:.2f}/{r:.1f}" for s, r in zip(shot.spread_e, shot.rank_e, strict=True))
            lines.append(
                f"  step {shot.step:,}: alignment {shot.alignment:.3f}, classification {shot.classification:.3f}, "
                f"spread/rank of exits {exits}"
            )
        lines.append(
            f"  conflicts at {self.conflicts:.0%} of {len(self.snapshots)} snapshots, "
            f"alignment left out on {self.dropped:,} steps"
        )
        if any(self.collapsed_e):
            exits = ", ".join(str(e) for e, gone in enumerate(self.collapsed_e) if gone)
            lines.append(f"  COLLAPSED: exits {exits} see all samples alike; lower the weight, or take another loss")
        return "\n".join([*lines, *([] if self.drift is None else [f"  {self.drift}"])])

    def to_dict(self) -> dict[str, Any]:
        """All but the net and the heads, as JSON."""
        plain = ("loss", "weight", "trunk", "steps", "rows", "dropped", "seconds")
        return {
            **{name: getattr(self, name) for name in plain},
            "looks": [asdict(snapshot) for snapshot in self.snapshots],
            "collapsed_e": list(self.collapsed_e),
            "drift": None if self.drift is None else asdict(self.drift),
        }
