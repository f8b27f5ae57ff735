"""One temperature per exit, so that equal confidence means equal risk at every exit.

Shape legend: n rows, e exits (the last is the full net), k classes, w bins.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from dynext.errors import PolicyError
from dynext.policy.table import ExitTable
from dynext.types import Basis

BINS = 15
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A temperature per exit, with the mean negative log-likelihood and the ECE before and after it."""

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

    edges: Tensor
    """``[w + 1]``, from 0 to 1."""
    count_w: Tensor
    confidence_w: Tensor
    """Mean largest probability of each bin's rows; NaN for an empty bin."""
    right_w: Tensor
    """Share of each bin's rows that are right by the table's basis; NaN for an empty bin."""


def calibrate(table: ExitTable) -> Calibration:
    """The temperature of each exit that minimizes its negative log-likelihood on ``table``'s rows.

    The loss is convex in 1/T, so the root of its derivative is found by bracketed Newton steps in log T, in float64,
    between 0.05 and 20. Against the teacher's answers (basis teacher) the last exit keeps 1: it always agrees with
    itself. Rows with a logit that is not finite do not count.

    Source: Guo et al., ICML 2017, arXiv:1706.04599, section 4.2. Ours converges fully, and keeps T = 1 where
    the loss would rise.
    """
    judged = [_calibrate_exit(table, e) for e in range(table.num_exits)]
    temperature_e, nll_before_e, nll_after_e = zip(*judged, strict=True)
    exits = range(table.num_exits)
    return Calibration(
        temperature_e=temperature_e,
        nll_before_e=nll_before_e,
        nll_after_e=nll_after_e,
        ece_before_e=tuple(ece(table, e, 1.0) for e in exits),
        ece_after_e=tuple(ece(table, e, temperature_e[e]) for e in exits),
        bins=BINS,
        basis=table.basis,
    )


def _calibrate_exit(table: ExitTable, e: int) -> tuple[float, float, float]:
    """Temperature, loss before and loss after it."""
    logits_nk, target_n = _finite_rows(table, e)
    if not len(target_n):
        return 1.0, math.nan, math.nan
    before = _nll(logits_nk, target_n, 1.0)
    if table.basis == "teacher" and e == table.num_exits - 1:
        return 1.0, before, before
    temperature = _best_temperature(logits_nk, target_n)
    after = _nll(logits_nk, target_n, temperature)
    return (temperature, before, after) if after < before else (1.0, before, before)


def _finite_rows(table: ExitTable, e: int) -> tuple[Tensor, Tensor]:
    finite_n = table.logits_nek[:, e].isfinite().all(1)
    return table.logits_nek[finite_n, e].double(), table.target_n[finite_n]


def _nll(logits_nk: Tensor, target_n: Tensor, temperature: float) -> float:
    return float(torch.nn.functional.cross_entropy(logits_nk / temperature, target_n))


def _best_temperature(logits_nk: Tensor, target_n: Tensor) -> float:
    """The root of d NLL / d(1/T), by Newton in log T; a step that leaves the bracket becomes a bisection."""
    centered_nk = logits_nk - logits_nk.gather(1, target_n[:, None])
    low, high, log_t = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE), 0.0
    for _ in range(100):
        slope, curvature = _derivatives(centered_nk, math.exp(-log_t))
        low, high = (low, log_t) if slope < 0 else (log_t, high)
        step = slope * math.exp(log_t) / curvature if curvature > 0 else math.inf
        ahead = log_t + step
        ahead = ahead if low < ahead < high else (low + high) / 2
        if abs(ahead - log_t) < 1e-10:
            break
        log_t = ahead
    return math.exp(log_t)


def _derivatives(centered_nk: Tensor, beta: float) -> tuple[float, float]:
    """First and second derivative of the mean loss by beta = 1/T; logits less the target's."""
    probability_nk = (centered_nk * beta).softmax(1)
    mean_n = (probability_nk * centered_nk).sum(1)
    variance_n = (probability_nk * centered_nk.square()).sum(1) - mean_n.square()
    return float(mean_n.mean()), float(variance_n.mean())


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
