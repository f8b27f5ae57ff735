"""What a policy may cost and lose."""

from __future__ import annotations

import math
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
    share: float = 1.0
    """Of the loss that was asked for, what ``max_drop`` may use up; the rest is kept back."""
    spent: float = 0.0
    """What was lost before there was anything to choose, and is taken off as well."""

    def __post_init__(self) -> None:
        if self.budget is not None and not 0 < self.budget < float("inf"):
            wanted = "a positive share of the static net's MACs, 0.5 for half of them"
            raise PolicyError(f"{self.shown(self.budget)}; give {wanted if self.static_ms is None else 'more than 0'}")
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise PolicyError(f"max_drop {self.max_drop}; give a share of the samples from 0 to 1, 0.01 for one point")

    @classmethod
    def kept_back(cls, *, budget: float | None, max_drop: float | None, share: float, spent: float) -> Limits:
        """A budget, and of an allowed loss ``share``, less what is ``spent``."""
        allowed = None if max_drop is None else max(share * max_drop - spent, 0.0)
        return cls(budget=budget, max_drop=allowed, static_ms=None, share=share, spent=spent)

    def to_ask(self, drop: float) -> float | None:
        """The ``max_drop`` to ask for, that ``drop`` be allowed, rounded up; ``None`` where asking does not help."""
        if not self.share > 0:
            return None
        asked = math.ceil(1e4 * (drop + self.spent) / self.share + 1e-9) / 1e4
        return asked if asked <= 1 else None

    def allowed(self, asked: float) -> float:
        """What may be lost where ``asked`` is the ``max_drop`` asked for."""
        return max(self.share * asked - self.spent, 0.0)

    @property
    def unit(self) -> str:
        return "MACs" if self.static_ms is None else "milliseconds"

    def shown(self, budget: float) -> str:
        """A budget as the user gave it."""
        return f"budget {budget}" if self.static_ms is None else f"budget_ms {budget * self.static_ms:.4g}"

    def in_words(self) -> str:
        budget = [] if self.budget is None else [f"budget {self.budget:.3g} of the static {self.unit}"]
        loss = [] if self.max_drop is None else [f"at most {self.max_drop:.2%} lost{self._held_back()}"]
        return " and ".join(budget + loss)

    def _held_back(self) -> str:
        kept = [] if self.share == 1 else [f"{1 - self.share:.0%} of what was asked for is kept back"]
        spent = [] if not self.spent else [f"{self.spent:.2%} is lost already"]
        return f" ({', '.join(kept + spent)})" if kept or spent else ""
