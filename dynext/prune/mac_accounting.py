"""What removing channels does to a net's MACs, computed before any channel is removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dynext.graph.macs import layer_macs
from dynext.modules.modes import evaluating
from dynext.net.dynamic_net import DynamicNet
from dynext.prune.channels import Channels, noise


class CutCandidate(NamedTuple):
    """A group of layers that may lose channels together: one of them, and what each of its channels is worth."""

    layer: str
    worth_c: Tensor


class MacAccounting:
    """MACs of the net's layers, and how many are left without some of the candidates' channels.

    A layer's MACs are proportional to its output and to its input channels. MACs that belong to no layer (attention
    between tokens) stay what they are.
    """

    def __init__(self, net: DynamicNet, channels: Channels, candidates: Sequence[CutCandidate]) -> None:
        self.channels, self.candidates = channels, candidates
        self.macs_ul = _layer_macs_by_unit(net)
        self.layers = {layer for _, layer in self.macs_ul}
        self.rest = net.staged.macs - sum(macs for (unit, _), macs in self.macs_ul.items() if unit >= 0)
        self.known: dict[tuple[int, tuple[int, ...]], list[tuple[str, str, int, int]]] = {}

    def saved(self, removed: dict[int, list[int]]) -> dict[tuple[int, str], float]:
        """MACs per sample that each layer no longer spends, in each stage or exit.

        Args:
            removed: the channels that go, by the candidate's number.
        """
        share: dict[tuple[str, str], float] = {}
        for index, gone in removed.items():
            for layer, side, lost, width in self._losses(index, tuple(sorted(gone))):
                share[layer, side] = share.get((layer, side), 1.0) - lost / width
        return {
            (unit, layer): macs * (1 - share.get((layer, "out"), 1.0) * share.get((layer, "in"), 1.0))
            for (unit, layer), macs in self.macs_ul.items()
        }

    def macs(self, removed: dict[int, list[int]]) -> int:
        """MACs per sample of the full net without these channels."""
        saved = self.saved(removed)
        return self.rest + round(sum(macs - saved[key] for key, macs in self.macs_ul.items() if key[0] >= 0))

    def _losses(self, index: int, gone: tuple[int, ...]) -> list[tuple[str, str, int, int]]:
        """Per layer of a candidate's group: its name, side, how many channels it loses, and of how many."""
        key = (index, gone)
        if key not in self.known:
            group = self.channels.group(self.candidates[index].layer, gone)
            self.known[key] = [
                (member.layer, member.side, len(member.channels), self._width(member.module, member.side))
                for member in self.channels.members(group)
                if member.layer in self.layers
            ]
        return self.known[key]

    def _width(self, module: nn.Module, side: str) -> int:
        graph = self.channels.graph
        return int(graph.get_out_channels(module) if side == "out" else graph.get_in_channels(module))


@torch.no_grad()
def _layer_macs_by_unit(net: DynamicNet) -> dict[tuple[int, str], int]:
    """MACs per sample by unit and layer. Units are the stages, from 0, and the exits, of which -1 is the first; a layer
    may be in several.
    """
    macs_ul: dict[tuple[int, str], int] = {}
    live: tuple[Tensor, ...] = (noise(net),)
    with evaluating(net):
        for s, stage in enumerate(net.staged.stages):
            macs_l = layer_macs(net, _of_first(stage, live[1:]), live[0])
            macs_ul.update({(s, layer): macs for layer, macs in macs_l.items()})
            live = stage(*live)
            for e, exit in enumerate(net.exits):
                if exit.after == s:
                    macs_l = layer_macs(net, exit, live[stage.tap])
                    macs_ul.update({(-1 - e, layer): macs for layer, macs in macs_l.items()})
    return macs_ul


def _of_first(stage: nn.Module, others: tuple[Tensor, ...]) -> Callable[[Tensor], object]:
    """The stage as a function of the first live tensor."""
    return lambda x: stage(x, *others)
