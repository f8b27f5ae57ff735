"""When to stop, and what to skip on the way: plain data, no tensor, no net.

Shape legend: e exits (the last is the full net), g gated stages.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from dynext.brief import short_repr
from dynext.errors import PolicyError
from dynext.policy.confidence import Confidence, Learned, Measure
from dynext.policy.foreign_confidence import saved_name
from dynext.types import Basis


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A row leaves at the first exit whose confidence reaches its threshold; at the last exit everybody leaves.

    On its way it runs a gated stage where the gate's probability reaches that gate's threshold, and skips it otherwise.

    Raises:
        PolicyError: lengths differ, a figure is NaN, infinite or out of range, or the last threshold is not 0.
    """

    __repr__ = short_repr

    confidence: Measure = "max_probability"
    threshold_e: tuple[float | None, ...]
    """``None`` switches an exit off, its head is not even run. Above 1 the head runs and nobody leaves."""
    temperature_e: tuple[float, ...]
    """What each exit's logits are divided by before the confidence is taken."""
    keep_g: tuple[float | None, ...] | None = None
    """Per gate the least probability, in [0, 1], at which a row runs the gate's stage. ``None`` switches a gate off: it
    is not asked, the stage always runs. ``None`` for the whole: no gate is asked and nothing is skipped."""
    basis: Basis | None = None
    """What the thresholds were chosen against; ``None`` when they were set by hand."""
    note: str = ""
    """How they were chosen, in a sentence."""

    def __post_init__(self) -> None:
        if self.basis not in (None, "labels", "teacher"):
            raise PolicyError(f"basis {self.basis!r}; give 'labels', 'teacher' or None")
        if not self.threshold_e or len(self.threshold_e) != len(self.temperature_e):
            raise PolicyError(
                f"{len(self.threshold_e)} thresholds and {len(self.temperature_e)} temperatures; "
                f"give one of each per exit, the last exit included"
            )
        Confidence(self.confidence, len(self.threshold_e))  # refuses measures that do not exist or fit
        for e, threshold in enumerate(self.threshold_e):
            if threshold is not None and not (_is_number(threshold) and threshold >= 0):
                raise PolicyError(f"threshold {threshold!r} of exit {e}; give a number of 0 or more, or None for off")
        for e, temperature in enumerate(self.temperature_e):
            if not (_is_number(temperature) and temperature > 0):
                raise PolicyError(f"temperature {temperature!r} of exit {e}; give a positive number")
        if self.threshold_e[-1] != 0:
            raise PolicyError(f"the last exit's threshold is {self.threshold_e[-1]}; it must be 0.0: everybody leaves")
        for g, keep in enumerate(self.keep_g or ()):
            if keep is not None and not (_is_number(keep) and 0 <= keep <= 1):
                raise PolicyError(f"threshold {keep!r} of gate {g}; give a probability in [0, 1], or None for off")

    @classmethod
    def never(cls, num_exits: int) -> Policy:
        """Nobody leaves early and no early head runs: the static net."""
        return cls(threshold_e=(None,) * (num_exits - 1) + (0.0,), temperature_e=(1.0,) * num_exits)

    @classmethod
    def always(cls, num_exits: int, exit: int = 0) -> Policy:
        """Everybody leaves at one exit (from 0; -1 is the full net); the other early heads do not run.

        Raises:
            PolicyError: there is no such exit.
        """
        if not -num_exits <= exit < num_exits:
            raise PolicyError(f"exit {exit} of a net with {num_exits} exits; give 0 to {num_exits - 1}, or -1")
        chosen = exit % num_exits
        threshold_e = tuple(0.0 if e in (chosen, num_exits - 1) else None for e in range(num_exits))
        return cls(threshold_e=threshold_e, temperature_e=(1.0,) * num_exits)

    @classmethod
    def skipping(cls, num_exits: int, num_gates: int, keep: float = 0.5) -> Policy:
        """Nobody leaves early; every gate decides, by one threshold."""
        return replace(cls.never(num_exits), keep_g=(keep,) * num_gates)

    @property
    def num_exits(self) -> int:
        return len(self.threshold_e)

    @property
    def enabled_e(self) -> tuple[bool, ...]:
        """Which exits run."""
        return tuple(threshold is not None for threshold in self.threshold_e)

    @property
    def skip_rule(self) -> tuple[float | None, ...] | None:
        """``keep_g``, or ``None`` where it asks no gate."""
        return self.keep_g if any(keep is not None for keep in self.keep_g or ()) else None

    def check_exits(self, num_exits: int) -> None:
        """Refuse to be used on a net or a table with another number of exits."""
        if num_exits != self.num_exits:
            raise PolicyError(
                f"the policy is for {self.num_exits} exits, this net or table has {num_exits}; choose one for it"
            )

    def check_gates(self, num_gates: int) -> None:
        """Refuse to be used on a net with another number of gates; a policy that asks none suits all."""
        if self.keep_g is not None and num_gates != len(self.keep_g):
            raise PolicyError(
                f"the policy is for {len(self.keep_g)} gates, this net has {num_gates}; choose one for it, "
                f"or attach the gates it was made with (dx.attach_gates)"
            )

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; ``from_dict`` brings exactly this policy back. Without gates the key ``keep_g`` is left out.

        Raises:
            PolicyError: its confidence is a function without a registered name.
        """
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        if isinstance(self.confidence, Learned):
            plain["confidence"] = self.confidence.to_dict()
        elif callable(self.confidence):
            plain["confidence"] = saved_name(self.confidence)
        if self.keep_g is None:
            del plain["keep_g"]
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Policy:
        """Raises PolicyError for missing or unknown keys and for figures that no policy may have."""
        known = {field.name for field in fields(cls)}
        missing, unknown = {"threshold_e", "temperature_e"} - plain.keys(), plain.keys() - known
        if missing or unknown:
            raise PolicyError(
                f"no policy: missing {sorted(missing) or 'nothing'}, unknown {sorted(unknown) or 'nothing'}; "
                f"its keys are {', '.join(sorted(known))}"
            )
        lists = {name: plain[name] for name in ("threshold_e", "temperature_e")}
        if plain.get("keep_g") is not None:
            lists["keep_g"] = plain["keep_g"]
        if not all(isinstance(values, list | tuple) for values in lists.values()):
            raise PolicyError(f"no policy: {', '.join(lists)} must be lists, given {lists}")
        return cls(**{**plain, **_measure(plain), **{name: tuple(values) for name, values in lists.items()}})

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Policy:
        """Raises PolicyError when the text is no JSON object or no policy."""
        try:
            plain = json.loads(text)
        except json.JSONDecodeError as error:
            raise PolicyError(f"no policy: not JSON ({error}); give what to_json wrote") from error
        if not isinstance(plain, dict):
            raise PolicyError(f"no policy: a JSON {type(plain).__name__}, expected an object; give what to_json wrote")
        return cls.from_dict(plain)


def _measure(plain: Mapping[str, Any]) -> dict[str, Learned]:
    """The learned measure, where that is the policy's."""
    measure = plain.get("confidence")
    if not isinstance(measure, Mapping):
        return {}
    try:
        return {"confidence": Learned(weight_e=tuple(tuple(map(float, weights)) for weights in measure["learned"]))}
    except (KeyError, TypeError, ValueError) as error:
        raise PolicyError(f"no policy: confidence {measure} is no learned measure; give what to_json wrote") from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
