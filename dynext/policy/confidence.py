"""How sure an exit is of a row: always in [0, 1], higher is surer; NaN where a logit is NaN or positive infinity.

NaN reaches no threshold, so such a row never leaves early: it goes on to the last exit.

Shape legend: b rows in a batch, n rows in a table, e exits (the last is the full net), k classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from dynext.brief import short_repr
from dynext.errors import PolicyError
from dynext.policy.foreign_confidence import OwnMeasure, check_rows_alone, measure_name, named, names

CONFIDENCES = ("max_probability", "margin", "entropy", "patience")
"""Largest probability; gap between the two largest; 1 - normalized entropy; equal answers in a row."""

FEATURES = ("max_probability", "margin", "entropy")
"""What a learned gate computes its confidence from."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A measure of confidence that gates have learned: ``sigmoid(w . (max probability, margin, 1 - entropy) + c)``.

    Every early exit has weights of its own; at the last exit, where everybody leaves, it is the max probability.

    Raises:
        PolicyError: weights that are not finite, or not four an exit.

    Source: JEI-DNN, Regol et al., ICLR 2024, arXiv:2310.09163.
    """

    __repr__ = short_repr

    weight_e: tuple[tuple[float, ...], ...]
    """Of each early exit: three weights and the constant c."""

    def __post_init__(self) -> None:
        for e, weights in enumerate(self.weight_e):
            if len(weights) != len(FEATURES) + 1 or not all(math.isfinite(w) for w in weights):
                raise PolicyError(f"weights {weights} of exit {e}'s gate; give {len(FEATURES) + 1} finite numbers")

    def __str__(self) -> str:
        return "learned"

    def of_exit(self, logits_nk: Tensor, exit: int) -> Tensor:
        """How sure the gate of ``exit`` is of each row ``[n]``."""
        if exit == len(self.weight_e):
            return confidence(logits_nk, "max_probability")
        *weights, constant = self.weight_e[exit]
        feature_nf = gate_features(logits_nk)
        return (feature_nf @ feature_nf.new_tensor(weights) + constant).sigmoid()

    def to_dict(self) -> dict[str, Any]:
        return {"learned": [list(weights) for weights in self.weight_e]}


Measure = str | Learned | OwnMeasure
"""One of `CONFIDENCES` or a name that is registered, what gates have learned, or a function (`foreign_confidence`)."""


def gate_features(logits_nk: Tensor) -> Tensor:
    """What a learned gate expects ``[n 3]``: `FEATURES`, from one exit's logits."""
    return torch.stack([confidence(logits_nk, name) for name in FEATURES], dim=-1)


def confidence(logits_nk: Tensor, measure: str | OwnMeasure) -> Tensor:
    """How sure one exit is of each row ``[n]``, from its logits alone.

    Source: max probability and entropy as in Teerapittayanon et al., ICPR 2016, arXiv:1709.01686; the entropy is
    divided by log k and taken from 1.

    Raises:
        PolicyError: an unknown measure, fewer than two classes, or patience, which needs the exits before.

    >>> confidence(torch.tensor([[0.0, 0.0], [9.0, 0.0]]), "margin").round(decimals=2).tolist()
    [0.0, 1.0]
    """
    check_measure(measure)
    if callable(measure) or measure not in CONFIDENCES:
        return named(measure)(logits_nk)
    num_classes = logits_nk.shape[-1]
    if num_classes < 2:
        raise PolicyError(f"confidence needs at least 2 classes, the logits have {num_classes}; take a classifier")
    wide_nk = logits_nk if logits_nk.dtype == torch.float64 else logits_nk.float()
    probability_nk = wide_nk.softmax(-1)
    if measure == "max_probability":
        return probability_nk.amax(-1)
    if measure == "margin":
        top_n2 = probability_nk.topk(2, dim=-1).values
        return top_n2[:, 0] - top_n2[:, 1]
    if measure == "entropy":
        entropy_n = torch.special.entr(probability_nk).sum(-1)
        return (1 - entropy_n / math.log(num_classes)).clamp(0, 1)
    raise PolicyError("patience compares an exit with those before it; use confidences() or Confidence.step()")


def confidences(
    logits_nek: Tensor,
    measure: Measure,
    temperature_e: Sequence[float] | None = None,
    enabled_e: Sequence[bool] | None = None,
) -> Tensor:
    """How sure every exit is of every row ``[n e]``; exits that are switched off get NaN.

    Args:
        temperature_e: what each exit's logits are divided by; 1 without it.
        enabled_e: which exits run; all without it.
    """
    num_exits = logits_nek.shape[1]
    step = Confidence(measure, num_exits)
    column_e = []
    for e in range(num_exits):
        if enabled_e is None or enabled_e[e]:
            scaled_nk = logits_nek[:, e] / (1.0 if temperature_e is None else temperature_e[e])
            if step.function is not None:
                check_rows_alone(step.function, scaled_nk, measure_name(measure))
            column_e.append(step.step(scaled_nk, exit=e))
        else:
            column_e.append(torch.full((len(logits_nek),), torch.nan, device=logits_nek.device))
    return torch.stack(column_e, dim=1)


def first_sure_exit(conf_ne: Tensor, threshold_e: Sequence[float | None]) -> Tensor:
    """The first exit whose confidence reaches its threshold, of each row ``[n]`` (int64); the last where none does.

    ``None`` is the threshold of an exit that is off; the last exit's own plays no part.
    """
    limit_e = torch.tensor([torch.inf if threshold is None else threshold for threshold in threshold_e])
    leaves_ne = conf_ne >= limit_e.to(conf_ne)
    leaves_ne[:, -1] = True
    return leaves_ne.int().argmax(1)


class Confidence:
    """Confidences exit after exit, for the rows that are still in a dynamic run.

    Patience is the number of equal consecutive answers, this exit's included, divided by the number of exits:
    among four exits a threshold of 0.5 asks for two equal answers.

    Source: Zhou et al., NeurIPS 2020, arXiv:2006.04152 (patience-based early exit); ours counts the first answer
    as 1 and divides by e so that it lies in [0, 1] like the others.
    """

    def __init__(self, measure: Measure, num_exits: int) -> None:
        check_measure(measure)
        if isinstance(measure, Learned) and len(measure.weight_e) != num_exits - 1:
            raise PolicyError(
                f"gates of {len(measure.weight_e)} early exits for {num_exits} exits; take those of this net"
            )
        self.measure = measure
        self.num_exits = num_exits
        own = isinstance(measure, Learned) or (isinstance(measure, str) and measure in CONFIDENCES)
        self.function = None if isinstance(measure, Learned) or own else named(measure)
        self._last_n: Tensor | None = None
        self._streak_n: Tensor | None = None

    def step(self, logits_bk: Tensor, rows: Tensor | None = None, exit: int = -1) -> Tensor:
        """How sure the next exit that runs is of each surviving row ``[b]``.

        Args:
            logits_bk: already divided by the exit's temperature.
            rows: ids of the surviving rows (int64 ``[b]``), among those of the first step; ``None`` means all.
            exit: which one it is, from 0; only gates ask.
        """
        if isinstance(self.measure, Learned):
            return self.measure.of_exit(logits_bk, exit)
        if self.function is not None:
            return self.function(logits_bk)
        if isinstance(self.measure, str) and self.measure != "patience":
            return confidence(logits_bk, self.measure)
        if rows is None:
            rows = torch.arange(len(logits_bk), device=logits_bk.device)
        if self._last_n is None or self._streak_n is None:
            num_rows = int(rows.max()) + 1 if len(rows) else 0
            self._last_n = torch.full((num_rows,), -1, device=rows.device)
            self._streak_n = torch.zeros(num_rows, dtype=torch.int64, device=rows.device)
        makes_sense_b = logits_bk.amax(-1).isfinite()
        answer_b = logits_bk.argmax(-1).where(makes_sense_b, -1)
        streak_b = torch.where(answer_b == self._last_n[rows], self._streak_n[rows] + 1, 1)
        self._last_n[rows] = answer_b
        self._streak_n[rows] = streak_b
        return (streak_b / self.num_exits).where(makes_sense_b, torch.nan)


def check_measure(measure: Measure) -> None:
    """Refuse a confidence measure that does not exist, naming the nearest one."""
    if isinstance(measure, Learned) or (callable(measure) and not isinstance(measure, type)):
        return
    if isinstance(measure, str) and measure in CONFIDENCES:  # before anybody's packages are asked
        return
    known = (*CONFIDENCES, *names())
    if not isinstance(measure, str) or measure not in known:
        near = get_close_matches(str(measure), known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise PolicyError(
            f"unknown confidence {measure!r}; give one of {', '.join(known)}{hint or '.'} A function "
            f"logits [n k] -> [n] may be given too; a saved name is known where its package is installed, or after "
            f"dx.plugins.register"
        )
