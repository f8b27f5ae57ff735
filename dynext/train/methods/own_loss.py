"""A method of one's own: a loss of all exits' logits, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from typing_extensions import Unpack

from dynext import plugins
from dynext.data.given import LearnOptions, takes_data
from dynext.fitting import FitConfig, configured
from dynext.net.dynamic_net import DynamicNet
from dynext.train.batches import Augment
from dynext.train.by_loss import ExitLoss, Teaching, Trunk, train_by_loss
from dynext.train.exit_loop import labelled
from dynext.train.frozen_teacher import BesideMode
from dynext.types import Data
from dynext.usual_modes import in_usual_modes

USUAL = FitConfig(batch_size=64)


@in_usual_modes
@takes_data("source")
def exits(
    net: DynamicNet,
    source: Data,
    config: FitConfig | None = None,
    *,
    loss: ExitLoss | Sequence[ExitLoss],
    trunk: Trunk = "frozen",
    teacher: nn.Module | None = None,
    bn: BesideMode | None = None,
    augment: Augment | None = None,
    **options: Unpack[LearnOptions],
) -> DynamicNet:
    """A copy of ``net`` trained by ``loss(logits_nek, y, net)``, one number, or by the sum of several such losses.

    ``logits_nek`` are all exits' logits ``[n e k]``, the full net's last; ``y`` is labels ``[n]``, or what the teacher
    says ``[n k]``; ``net`` is the net in training. `dynext.train.by_loss` says what else a loss may ask for and bring.
    Published methods are losses like that: `joint`, `shallow_deep`, `boostnet`, the first step of `imta`.

    Args:
        trunk: ``"frozen"`` trains heads on cached features, and the last exit is bit for bit what it was; ``"joint"``
            trains all of it.
        teacher: its probabilities stand in place of labels.
        bn: with a teacher and ``trunk="joint"``: which statistics the trunk normalizes by
            (`dynext.train.frozen_teacher`); as suits the samples without.
        augment: with ``trunk="joint"``; cached features cannot be augmented.

    Raises:
        FitError: no early exit, no such ``trunk``, or a loss that cannot be called so or gives something else.
        SourceError: neither labels nor a teacher, or samples of another shape than the model expects.
    """
    config = configured(USUAL, config, options)
    each = list(loss) if isinstance(loss, Sequence) else [loss]
    told = "; ".join(plugins.identity(one) for one in each)
    config = labelled(config, "exits", loss=told, trunk=trunk, taught=teacher is not None)
    teaching = None if teacher is None else Teaching(teacher=teacher, bn=bn)
    return train_by_loss(net, source, config, loss, trunk=trunk, teaching=teaching, augment=augment)
