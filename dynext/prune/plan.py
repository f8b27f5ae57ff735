"""What to remove from a dynamic net: a plan that can be printed, stored as JSON and checked before it is applied."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dynext.brief import short_repr
from dynext.errors import PlanError


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Output channels of one layer that are removed, with every channel that depends on them."""

    layer: str
    """Path in the dynamic net, after blocks and exits are gone: ``"staged.stages.1.body.layer1.0.conv1"``."""
    channels: tuple[int, ...]
    of: int
    coupled: tuple[str, ...] = ()
    """Every layer whose output loses channels together with this one's, itself included: their outputs meet in a sum or
    a normalization."""

    def __post_init__(self) -> None:
        if not self.channels or len(set(self.channels)) != len(self.channels):
            raise PlanError(f"channels {self.channels} of {self.layer}; give some, each once")
        if min(self.channels) < 0 or max(self.channels) >= self.of or len(self.channels) >= self.of:
            raise PlanError(
                f"channels {self.channels} of the {self.of} of {self.layer}; give numbers from 0 to {self.of - 1}, "
                f"and leave at least one"
            )


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """What is removed, and what that leaves: MACs per sample of each exit up to its head, and live shapes."""

    __repr__ = short_repr

    cuts: tuple[Cut, ...] = ()
    blocks: tuple[str, ...] = ()
    """Stages that are left out, by name."""
    exits: tuple[str, ...] = ()
    """Exits that are left out, by name."""
    by: str = "nothing"
    """What channels were ranked by."""
    macs_before: int = 0
    macs_e: tuple[int, ...] = ()
    """Trunk and head of each exit that stays, the full net last; empty in a plan that was not ranked."""
    live_shapes: tuple[tuple[tuple[int, ...], ...], ...] = ()
    """Of each stage that stays, the shapes of the tensors that it hands on."""

    def __bool__(self) -> bool:
        return bool(self.cuts or self.blocks or self.exits)

    @property
    def macs(self) -> int:
        """MACs per sample of the full net after pruning; 0 in a plan that was not ranked."""
        return self.macs_e[-1] if self.macs_e else 0

    def to_dict(self) -> dict[str, Any]:
        """JSON; `from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> PruningPlan:
        """The plan that `to_dict` wrote.

        Raises:
            PlanError: something else, or a later version's plan.
        """
        try:
            cuts = [
                Cut(
                    layer=cut["layer"],
                    channels=tuple(cut["channels"]),
                    of=cut["of"],
                    coupled=tuple(cut["coupled"]),
                )
                for cut in given["cuts"]
            ]
            shapes = tuple(tuple(tuple(shape) for shape in live) for live in given["live_shapes"])
            rest = {key: tuple(given[key]) for key in ("blocks", "exits", "macs_e")}
            return cls(cuts=tuple(cuts), live_shapes=shapes, by=given["by"], macs_before=given["macs_before"], **rest)
        except (KeyError, TypeError) as error:
            raise PlanError(
                f"this is no plan ({type(error).__name__}: {error}); make one with dx.prune.rank"
            ) from error

    def __str__(self) -> str:
        if not self:
            return "nothing is removed"
        left_out = (("blocks", self.blocks), ("exits", self.exits))
        lines = [f"{what} left out: {', '.join(names)}" for what, names in left_out if names]
        width = max((len(cut.layer) for cut in self.cuts), default=0)
        for cut in self.cuts:
            others = len(cut.coupled) - 1
            more = f", and of {others} coupled with it" if others > 0 else ""
            lines.append(f"{cut.layer:{width}}  {len(cut.channels):4} of {cut.of:4} channels{more}")
        if self.macs_e and self.macs_before:
            lines.append(
                f"MACs of the full net {self.macs_before:,} -> {self.macs:,}: {self.macs / self.macs_before:.1%}"
            )
            lines.append(f"up to each exit, its head included: {', '.join(f'{macs:,}' for macs in self.macs_e)}")
        return "\n".join([f"ranked by {self.by}", *lines])
