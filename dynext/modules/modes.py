"""The modes a net is read in: evaluation, and which statistics its BatchNorms use ("@bn").

Source: Raikwar & Mishra, NeurIPS 2022: a teacher shown samples that are not its training data answers far better when
its BatchNorms use the statistics of those samples. Ours touches no buffer at all, so there is nothing to restore but
flags.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dynext.errors import SourceError
from dynext.types import BatchNormMode


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """The BatchNorms of ``module`` that keep running statistics (timm's variants are subclasses)."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, every BatchNorm of ``module`` normalizes by the batch at hand; every buffer stays bit-identical."""
    norms = batch_norms(module)
    kept = [(m, m.training, m.track_running_stats) for m in norms]
    try:
        for m in norms:
            # In training without tracking, the functional form is handed no buffer to update.
            m.training, m.track_running_stats = True, False
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise SourceError(
            "a batch of one sample has no statistics that this net's BatchNorms could normalize by; give at least two "
            "samples, in batches of two or more"
        ) from error
    finally:
        for m, training, tracking in kept:
            m.training, m.track_running_stats = training, tracking


def statistics(module: nn.Module, mode: BatchNormMode) -> AbstractContextManager[None]:
    """``batch_statistics(module)`` for ``"batch"``, nothing for ``"running"``."""
    return batch_statistics(module) if mode == "batch" else nullcontext()


class Modal(Protocol):
    """What has modules with training flags: an ``nn.Module``, or an object that offers this part of one."""

    training: bool

    def modules(self) -> Iterator[nn.Module]: ...

    def eval(self) -> object: ...


@contextmanager
def evaluating(module: Modal) -> Iterator[None]:
    """Inside, ``module`` is in evaluation; afterwards every training flag is what it was."""
    kept = [(m, m.training) for m in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for m, training in kept:
            m.training = training


def in_evaluation(module: Modal) -> AbstractContextManager[None]:
    """``evaluating(module)``, unless its own flag says evaluation already: going through all its parts would take too
    much of the time of running one sample.
    """
    return evaluating(module) if module.training else nullcontext()


def take_flags(module: nn.Module, original: nn.Module) -> None:
    """Give ``module``, a copy of ``original``, back its training flags and which parameters want a gradient."""
    for p, kept in zip(module.parameters(), original.parameters(), strict=True):
        p.requires_grad_(kept.requires_grad)
    for part, kept_part in zip(module.modules(), original.modules(), strict=True):
        part.training = kept_part.training
