"""One number per exit and class: what an exit says too often, or too rarely, on the rows that it meets.

Exits that were trained on rows unlike those they meet are wrong in a lopsided way: they say one class too often and
another too rarely. A few hundred rows, which need no labels, are enough to put that right.

Shape legend: n rows, e exits (the last is the full net), k classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dynext.errors import PolicyError
from dynext.policy.calibrate import MAX_TEMPERATURE, MIN_TEMPERATURE
from dynext.policy.table import ExitTable

SPREAD = 2.0
"""Deviation of the prior on a bias, in calibrated logits: weak, yet it keeps a class that no row has near 0."""

ITERATIONS = 100


def class_biases(table: ExitTable, *, spread: float = SPREAD) -> Tensor:
    """What to add to each exit's logits ``[e k]``, float64; the full net's are left alone.

    Temperature and biases together minimize the mean cross-entropy of ``logits / T + b`` against the table's targets
    (labels, or the full net's answers), plus ``|b|^2 / (2 spread^2 n)``. What is returned is ``T b`` less its mean:
    logits keep their scale, and a temperature is calibrated afterwards as ever. Rows with a logit that is not finite do
    not count.

    Raises:
        PolicyError: ``spread`` is not positive.

    Source: bias-corrected temperature scaling, Alexandari et al., ICML 2020, arXiv:1901.06852. Ours has a prior.
    """
    if not spread > 0:
        raise PolicyError(f"spread={spread}; give a positive deviation, larger for a weaker prior")
    early = [_exit_biases(table.logits_nek[:, e].double(), table.target_n, spread) for e in range(table.num_exits - 1)]
    return torch.stack([*early, torch.zeros(table.num_classes, dtype=torch.double)])


def _exit_biases(logits_nk: Tensor, target_n: Tensor, spread: float) -> Tensor:
    finite_n = logits_nk.isfinite().all(1)
    logits_nk, target_n = logits_nk[finite_n], target_n[finite_n]
    bias_k = torch.zeros(logits_nk.shape[1], dtype=torch.double, requires_grad=True)
    log_beta = torch.zeros((), dtype=torch.double, requires_grad=True)
    if not len(target_n):
        return bias_k.detach()
    optimizer = torch.optim.LBFGS(
        [bias_k, log_beta], max_iter=ITERATIONS, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        loss = F.cross_entropy(logits_nk * log_beta.exp() + bias_k, target_n)
        loss = loss + bias_k.square().sum() / (2 * spread**2 * len(target_n))
        bias_k.grad, log_beta.grad = torch.autograd.grad(loss, [bias_k, log_beta])
        return loss.detach()

    with torch.enable_grad():
        optimizer.step(closure)
    # the best beta of an exit that is always right is infinite; beyond this its answers are one-hot anyway
    temperature = (-log_beta.detach()).exp().clamp(MIN_TEMPERATURE, MAX_TEMPERATURE)
    return temperature * (bias_k.detach() - bias_k.detach().mean())
