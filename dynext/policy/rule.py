"""How a policy is scored on the few rows at hand: by confidence bounds, or by what was observed.

Shape legend: t thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dynext.errors import PolicyError
from dynext.policy.bounds import Floats
from dynext.policy.sweep import Risk, Sweep, Sweeper


@dataclass(frozen=True, kw_only=True)
class SafeRule:
    """Score by confidence bounds, and take a policy only if every more cautious one passes too.

    Raises:
        PolicyError: a figure out of range, or an unknown risk.
    """

    delta: float = 0.05
    """How often the rule may be wrong, in (0, 1)."""
    min_support: int = 20
    """The least rows that must leave at every exit that is on, or skip a stage."""
    risk: Risk = "drop"
    """What a lost row weighs, with ``basis="teacher"``. ``"drop"`` weighs each answer unlike the full net's by what the
    full net's own probabilities say is lost (too much, if it is overconfident as most nets are; too little, if it is
    underconfident); ``"disagreement"`` counts it whole, and no accuracy can drop further than that."""

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1 or self.min_support < 0:
            raise PolicyError(
                f"delta {self.delta} and min_support {self.min_support}; give a delta in (0, 1), a support of 0 or more"
            )
        _check_risk(self.risk)

    def sharing(self, num_paths: int) -> SafeRule:
        """The same where policies are tested down several paths, any of which may be the wrong one."""
        return replace(self, delta=self.delta / max(num_paths, 1))

    def loss_t(self, sweep: Sweep) -> Floats:
        """What is held against the allowed loss: an upper bound on the drop."""
        return sweep.drop_bound_t(self.delta)

    def right_t(self, sweep: Sweep) -> Floats:
        """What a budget is spent on: a lower bound on the share of right answers."""
        return sweep.right_bound_t(self.delta)

    def full_right(self, sweeper: Sweeper) -> float:
        """The same of the full net."""
        return sweeper.full_right(self.delta)

    def supported_t(self, sweep: Sweep) -> NDArray[np.bool_]:
        """Where enough rows leave for the bounds to mean something."""
        return sweep.support_t >= self.min_support

    def in_words(self) -> str:
        return (
            f"rule safe (Clopper-Pearson, delta {self.delta:g}, {self.min_support} samples or more leave at each exit)"
        )


@dataclass(frozen=True, kw_only=True)
class PlainRule:
    """Score by what was observed, which on few rows promises too much.

    Raises:
        PolicyError: an unknown risk.
    """

    risk: Risk = "drop"
    """What a lost row weighs, as in `SafeRule`."""

    def __post_init__(self) -> None:
        _check_risk(self.risk)

    def sharing(self, num_paths: int) -> PlainRule:
        """Itself: nothing is tested, hence nothing shared."""
        return self

    def loss_t(self, sweep: Sweep) -> Floats:
        """What is held against the allowed loss: the observed drop."""
        return sweep.drop_t()

    def right_t(self, sweep: Sweep) -> Floats:
        """What a budget is spent on: the observed share of right answers."""
        return sweep.right_t / sweep.num_rows

    def full_right(self, sweeper: Sweeper) -> float:
        """The same of the full net."""
        return sweeper.full_right(None)

    def supported_t(self, sweep: Sweep) -> NDArray[np.bool_]:
        """Everywhere."""
        return np.ones(len(sweep.support_t), dtype=bool)

    def in_words(self) -> str:
        return "rule plain"


Rule = Literal["safe", "plain"] | SafeRule | PlainRule
"""A rule, or the name of one with its defaults."""


def rule_of(rule: Rule) -> SafeRule | PlainRule:
    """The rule that is meant.

    Raises:
        PolicyError: neither a rule nor the name of one.
    """
    if isinstance(rule, SafeRule | PlainRule):
        return rule
    if rule == "safe":
        return SafeRule()
    if rule == "plain":
        return PlainRule()
    raise PolicyError(f"rule {rule!r}; give 'safe', 'plain', or a SafeRule or PlainRule of dx.policies")


def _check_risk(risk: str) -> None:
    if risk not in get_args(Risk):
        raise PolicyError(f"risk {risk!r}; give one of {', '.join(get_args(Risk))}")
