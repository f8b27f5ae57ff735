"""Cut channels out of a net, or set them to zero, and test that both are the same.

A channel may be removed if that changes the net's answers exactly as setting it to zero does. This holds for
convolutions, BatchNorm and linear layers, and not where a LayerNorm averages over channels, a shortcut pads them or a
reshape counts them: such groups stay whole. The test runs the net both ways, whatever its layers' types.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from dynext.errors import line
from dynext.net.dynamic_net import DynamicNet
from dynext.prune.channels import AllExits, Channels, noise

TOLERANCE = 1e-3
"""Largest difference between removing and setting to zero that is allowed, as a share of the largest logit."""

Trial = tuple[str, Sequence[int]]
"""A layer's name and the output channels that would be removed."""


def remove_(net: DynamicNet, channels: Channels, trials: Sequence[Trial]) -> None:
    """Cut the channels of all trials out of ``net``, and all that depends on them.

    Args:
        channels: of this net or of one that it is a copy of. Channels are cut at once, by the numbers that they have
            there: a BatchNorm behind a concatenation loses those of several trials, and none of them moves the others.
    """
    lost: dict[tuple[str, Any], tuple[Any, set[int]]] = {}
    for layer, chosen in trials:
        for dep, numbers in channels.group(layer, chosen):
            path = channels.path(dep.target.module)
            if path is not None:
                lost.setdefault((path, dep.handler), (dep.target, set()))[1].update(int(c) for c in numbers)
    for (path, handler), (node, gone) in lost.items():
        parent, _, name = path.rpartition(".")
        owner = net.get_submodule(parent)
        handler.__self__.pruning_dim = node.pruning_dim
        cut = handler(getattr(owner, name), sorted(gone))
        if isinstance(cut, nn.Parameter):
            setattr(owner, name, cut)


def zero(group: Any, channels: Channels) -> None:
    """Set to zero in place, in every layer of the group, the output channels that would be removed."""
    _zero_in(channels.module, group, channels)


def _zero_in(net: nn.Module, group: Any, channels: Channels) -> None:
    for member in channels.members(group):
        if member.side == "out" or isinstance(member.module, _BatchNorm):
            index, layer = torch.tensor(member.channels), net.get_submodule(member.layer)
            transposed = isinstance(layer, _ConvTransposeNd) and layer.groups == 1
            for name, tensor in layer.named_parameters(recurse=False):
                dim = 1 if transposed and name == "weight" else 0
                tensor.detach().index_fill_(dim, index.to(tensor.device), 0.0)


@torch.no_grad()
def inconsistency(net: DynamicNet, channels: Channels, trials: Sequence[Trial]) -> str | None:
    """How removing all of these channels differs from setting them to zero; ``None`` where it does not.

    ``net``, whose ``channels`` these are, is not changed.
    """
    zeroed, cut = copy.deepcopy(net), copy.deepcopy(net)
    x = noise(net)
    try:
        # a traced graph that fails prints itself, which would only confuse the user
        with redirect_stderr(io.StringIO()):
            for layer, chosen in trials:
                _zero_in(zeroed, channels.group(layer, chosen), channels)
            remove_(cut, channels, trials)
            zeroed_e, cut_e = (AllExits(each).eval()(x) for each in (zeroed, cut))
    except Exception as error:  # cutting and running a net that does not fit raise many kinds
        return f"the rest no longer fits ({type(error).__name__}: {line(error)})"
    for wanted, logits in zip(zeroed_e, cut_e, strict=True):
        scale = max(float(wanted.abs().max()), 1e-6)
        if wanted.shape != logits.shape or not torch.allclose(wanted, logits, rtol=0, atol=TOLERANCE * scale):
            return "what is left answers otherwise than with these channels at zero"
    return None


def sound(net: DynamicNet, channels: Channels, trials: Sequence[Trial]) -> list[Trial]:
    """Those of the trials that are consistent: all are tried at once, and halved where they fail."""
    if not trials or inconsistency(net, channels, trials) is None:
        return list(trials)
    if len(trials) == 1:
        return []
    middle = len(trials) // 2
    kept, others = (sound(net, channels, half) for half in (trials[:middle], trials[middle:]))
    both = kept + others
    if not kept or not others or (len(both) < len(trials) and inconsistency(net, channels, both) is None):
        return both
    for trial in others:  # sound apart, and not together
        if inconsistency(net, channels, [*kept, trial]) is None:
            kept.append(trial)
    return kept
