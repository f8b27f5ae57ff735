"""The linear layer that gives a net's final logits: what new classes replace and prototypes are measured before."""

from __future__ import annotations

from torch import nn

from dynext.errors import FitError
from dynext.net.dynamic_net import DynamicNet
from dynext.net.embeddings import gives_logits


def last_linear(net: DynamicNet) -> nn.Linear:
    """The ``nn.Linear`` whose output is the net's output.

    Raises:
        FitError: the net ends in something else.
    """
    found = gives_logits(net, [m for m in net.staged.stages[-1].modules() if isinstance(m, nn.Linear)])
    if found is not None:
        return found
    raise FitError(
        "the net's logits do not come out of an nn.Linear, so that its last classifier cannot be replaced; "
        "learn the same classes instead (classifiers='kept', with steps), or use dx.align.few_shot"
    )
