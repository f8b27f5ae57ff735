"""One temperature per exit, so that equal confidence means equal risk at every exit.

Shape legend: n rows, e exits (the last is the full net), k classes, w bins.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dynext.brief import short_repr
from dynext.errors import PolicyError
from dynext.plugins import reference
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable
from dynext.types import Basis
from dynext.usual_modes import in_usual_modes

Calibrator = Literal["temperature"] | Callable[[Tensor, Tensor], float]
"""``"temperature"``, or a function ``(logits [n k], right [n]) -> temperature`` of one exit."""

log = logging.getLogger("dynext")

BINS = 15
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
NEARLY_ALL = 0.99
"""Share of samples on which an exit is right from which on nothing more can be said of how sure it may be."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A temperature per exit, with the mean negative log-likelihood and the ECE before and after it."""

    __repr__ = short_repr

    temperature_e: tuple[float, ...]
    nll_before_e: tuple[float, ...]
    nll_after_e: tuple[float, ...]
    ece_before_e: tuple[float, ...]
    ece_after_e: tuple[float, ...]
    bins: int
    basis: Basis

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reliability:
    """Rows of one exit by their largest probability, in equal bins: what a reliability diagram shows."""

    __repr__ = short_repr

    edges: Tensor
    """``[w + 1]``, from 0 to 1."""
    count_w: Tensor
    confidence_w: Tensor
    """Mean largest probability of each bin's rows; NaN for an empty bin."""
    right_w: Tensor
    """Share of each bin's rows that are right by the table's basis; NaN for an empty bin."""


@in_usual_modes
def calibrate(table: ExitTable, method: Calibrator = "temperature") -> Calibration:
    """The temperature of each exit that minimizes its negative log-likelihood on ``table``'s rows.

    The loss is convex in 1/T, so that the root of its derivative is the minimum. Brent's method finds it in log T, in
    float64, between 0.05 and 20; a minimum beyond a bound becomes the bound, which is logged as a warning that
    names the exit and says what to do. Against the teacher's answers (basis
    teacher) the last exit keeps 1: it always agrees with itself. Rows with a logit that is not finite do not count.

    Args:
        method: a function ``(logits [n k], right [n]) -> temperature`` in place of that, asked for each exit: float64
            logits of the rows that are finite, and the classes that are right by the table's basis.

    Raises:
        PolicyError: a method that gives no positive number.

    Source: Guo et al., ICML 2017, arXiv:1706.04599, section 4.2. Ours converges fully, and keeps T = 1 where
    the loss would rise.
    """
    exits = range(table.num_exits)
    if method != "temperature" and not callable(method):
        raise PolicyError(f"method={method!r}; give 'temperature', or a function (logits [n k], right [n]) -> number")
    fitted = (_calibrate_exit(table, e, method) for e in exits)
    temperature_e, nll_before_e, nll_after_e = zip(*fitted, strict=True)
    for e in exits:
        if method == "temperature" and temperature_e[e] in (MIN_TEMPERATURE, MAX_TEMPERATURE):
            log.warning("%s", at_bound(table, e, temperature_e[e]))
    return Calibration(
        temperature_e=temperature_e,
        nll_before_e=nll_before_e,
        nll_after_e=nll_after_e,
        ece_before_e=tuple(ece(table, e, 1.0) for e in exits),
        ece_after_e=tuple(ece(table, e, temperature_e[e]) for e in exits),
        bins=BINS,
        basis=table.basis,
    )


def at_bound(table: ExitTable, e: int, temperature: float) -> str:
    """What it means that the temperature of exit ``e`` ended at a bound, and what to do."""
    where = f"exit {e} ({table.name_e[e]}) on {table.rows} (n={len(table)})"
    share = float(table.right_ne[:, e].double().mean())
    right = f"it is right on {share:.1%} of them"
    if temperature == MIN_TEMPERATURE and share < NEARLY_ALL:
        return (
            f"the temperature of {where} ended at its lower bound {temperature:g}: {right}, its logits are far smaller "
            f"than that deserves, as of a head that has hardly learned, and its confidences stay too low; train it "
            f"longer, or leave it off"
        )
    if temperature == MIN_TEMPERATURE:
        return (
            f"the temperature of {where} ended at its lower bound {temperature:g}: {right}, and nothing there says how "
            f"sure it may be at most; calibrate on more samples, or on harder ones"
        )
    return (
        f"the temperature of {where} ended at its upper bound {temperature:g}: {right}, its logits are far larger than "
        f"that deserves, and its confidences stay too high; train it longer, scale its logits down (divide its "
        f"classifier's weights and biases by {temperature:g}), or leave it off"
    )


def _calibrate_exit(table: ExitTable, e: int, method: Calibrator) -> tuple[float, float, float]:
    """Temperature, loss before and loss after it."""
    logits_nk, target_n = _finite_rows(table, e)
    if not len(target_n):
        return 1.0, math.nan, math.nan
    before = _nll(logits_nk, target_n, 1.0)
    if table.basis == "teacher" and e == table.num_exits - 1:
        return 1.0, before, before
    if callable(method):
        own = _checked(method(logits_nk, target_n), method, e)
        return own, before, _nll(logits_nk, target_n, own)
    temperature = _best_temperature(logits_nk, target_n)
    after = _nll(logits_nk, target_n, temperature)
    return (temperature, before, after) if after < before else (1.0, before, before)


def _checked(temperature: object, method: object, e: int) -> float:
    """Raises PolicyError: a temperature that is no positive number."""
    try:
        value = float(temperature)  # type: ignore[arg-type]  # that is the question
    except (TypeError, ValueError, RuntimeError):
        value = math.nan
    if not 0 < value < math.inf:
        raise PolicyError(
            f"calibrator {reference(method)} gave {temperature!r} for exit {e}; give one positive number, 1.0 to leave "
            f"the exit as it is"
        )
    return value


def _finite_rows(table: ExitTable, e: int) -> tuple[Tensor, Tensor]:
    finite_n = table.logits_nek[:, e].isfinite().all(1)
    return table.logits_nek[finite_n, e].double(), table.target_n[finite_n]


def _nll(logits_nk: Tensor, target_n: Tensor, temperature: float) -> float:
    return float(torch.nn.functional.cross_entropy(logits_nk / temperature, target_n))


def _best_temperature(logits_nk: Tensor, target_n: Tensor) -> float:
    """The root of d NLL / d(1/T) over log T, or the bound beyond which it lies."""
    from scipy.optimize import brentq  # slow to import

    centered_nk = logits_nk - logits_nk.gather(1, target_n[:, None])

    def slope(log_t: float) -> float:
        """Of the mean loss along 1/T: it rises with 1/T, and falls with T."""
        probability_nk = (centered_nk * math.exp(-log_t)).softmax(1)
        return float((probability_nk * centered_nk).sum(1).mean())

    low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    if slope(low) <= 0:
        return MIN_TEMPERATURE
    if slope(high) >= 0:
        return MAX_TEMPERATURE
    return math.exp(brentq(slope, low, high))


def temperatures(table: ExitTable, temperature: Calibration | Sequence[float] | None) -> tuple[float, ...]:
    """One for each exit of ``table``: those of a calibration, those given, or 1 without any.

    Raises:
        PolicyError: another number of them than of exits, or one that is not positive.
    """
    if temperature is None:
        return (1.0,) * table.num_exits
    given = temperature.temperature_e if isinstance(temperature, Calibration) else tuple(map(float, temperature))
    if len(given) != table.num_exits:
        raise PolicyError(f"{len(given)} temperatures for {table.num_exits} exits; calibrate on this table")
    Policy(threshold_e=(0.0,) * len(given), temperature_e=given)  # refuses what no policy may have
    return given


def ece(table: ExitTable, exit: int, temperature: float) -> float:
    """Expected calibration error of one exit, 15 bins: mean gap between confidence and the share that is right.

    Source: Naeini et al., AAAI 2015; computed by torchmetrics. NaN when no row is finite.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error  # slow to import

    logits_nk, target_n = _finite_rows(table, exit)
    if not len(target_n):
        return math.nan
    probability_nk = (logits_nk / temperature).softmax(1)
    return float(
        multiclass_calibration_error(probability_nk, target_n, table.num_classes, n_bins=BINS, validate_args=False)
    )


def reliability(table: ExitTable, temperature: float, exit: int) -> Reliability:
    """The reliability diagram of one exit (from 0; -1 is the full net) at ``temperature``, in 15 equal bins.

    Raises:
        PolicyError: no such exit.
    """
    if not -table.num_exits <= exit < table.num_exits:
        raise PolicyError(f"exit {exit} of a table with {table.num_exits}; give 0 to {table.num_exits - 1}, or -1")
    logits_nk, target_n = _finite_rows(table, exit)
    top_n, answer_n = (logits_nk / temperature).softmax(1).max(1)
    bin_n = (top_n * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    count_w = torch.bincount(bin_n, minlength=BINS)
    return Reliability(
        edges=torch.linspace(0, 1, BINS + 1),
        count_w=count_w,
        confidence_w=torch.bincount(bin_n, top_n, BINS) / count_w,
        right_w=torch.bincount(bin_n, (answer_n == target_n).double(), BINS) / count_w,
    )
