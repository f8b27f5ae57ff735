"""What a policy may cost and lose."""

from __future__ import annotations

from dataclasses import dataclass

from dynext.errors import PolicyError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """A budget, an allowed loss, or both.

    Raises:
        PolicyError: one that is out of range.
    """

    budget: float | None
    """Most that a row may cost on average, as a share of the static net."""
    max_drop: float | None
    """Most that may be lost, as a share of the rows."""
    static_ms: float | None
    """What the static net takes a row, where costs are milliseconds; ``None`` where they are MACs."""

    def __post_init__(self) -> None:
        if self.budget is not None and not 0 < self.budget < float("inf"):
            wanted = "a positive share of the static net's MACs, 0.5 for half of them"
            raise PolicyError(f"{self.shown(self.budget)}; give {wanted if self.static_ms is None else 'more than 0'}")
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise PolicyError(f"max_drop {self.max_drop}; give a share of the samples from 0 to 1, 0.01 for one point")

    @property
    def unit(self) -> str:
        return "MACs" if self.static_ms is None else "milliseconds"

    def shown(self, budget: float) -> str:
        """A budget as the user gave it."""
        return f"budget {budget}" if self.static_ms is None else f"budget_ms {budget * self.static_ms:.4g}"

    def in_words(self) -> str:
        budget = [] if self.budget is None else [f"budget {self.budget:.3g} of the static {self.unit}"]
        loss = [] if self.max_drop is None else [f"at most {self.max_drop:.2%} lost"]
        return " and ".join(budget + loss)
