"""A skip rule: per gated stage the least probability at which a sample runs it.

Shapes: b samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

SkipRule = Sequence["float | None"]
"""Per gated stage the least probability at which a sample runs it; ``None``: always, and the gate is not asked."""


def runs(logit_b: Tensor, keep: float | None) -> Tensor:
    """Which samples run ``[b]``, bool. A sample whose gate says NaN runs: what is not understood is not left out.

    >>> import torch
    >>> runs(torch.tensor([-1.0, 0.0, math.nan]), 0.5).tolist()
    [False, True, True]
    """
    return ~(logit_b < threshold_logit(keep))


def threshold_logit(keep: float | None) -> float:
    """The logit of a probability; minus infinity for ``None`` and 0, which nothing is below."""
    if keep is None or keep <= 0:
        return -math.inf
    return math.inf if keep >= 1 else math.log(keep) - math.log1p(-keep)
