"""Which parts of a module are in training while it is trained: those that learn, and what stands among them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def training_what_learns(module: nn.Module) -> Iterator[None]:
    """Inside, parts that learn are in training and frozen ones in evaluation; afterwards every flag is what it was.

    A part learns if it holds a parameter that wants a gradient. A part without any parameter (dropout, a BatchNorm
    without weights) goes with the part around it. A BatchNorm whose weights are frozen keeps its running statistics.

    >>> frozen = nn.BatchNorm1d(2).requires_grad_(False)
    >>> net = nn.Sequential(frozen, nn.Sequential(nn.Linear(2, 2), nn.Dropout())).eval()
    >>> with training_what_learns(net):
    ...     [part.training for part in net.modules()]
    [True, False, True, True, True]
    >>> net.training
    False
    """
    kept = [(part, part.training) for part in module.modules()]
    try:
        _set(module, around=False)
        yield
    finally:
        for part, training in kept:
            part.training = training


def _set(part: nn.Module, *, around: bool) -> None:
    own = list(part.parameters())
    part.training = any(p.requires_grad for p in own) if own else around
    for child in part.children():
        _set(child, around=part.training)
