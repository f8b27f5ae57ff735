"""What removing channels does to a net's costs and shapes, known before any is removed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dynext.graph.macs import layer_macs
from dynext.modules.modes import evaluating
from dynext.net.dynamic_net import DynamicNet
from dynext.prune.channels import Channels, rows
from dynext.prune.plan import Cut


class Candidate(NamedTuple):
    """One group of channels: its root layer, what each channel is worth, what goes with it."""

    layer: str
    worth_c: Tensor
    coupled: tuple[str, ...]


class Books:
    """MACs of the net's layers, and what removing channels does to them, without removing any.

    A layer's MACs go with its outputs and its inputs; what no layer does (attention between tokens) stays.
    """

    def __init__(self, net: DynamicNet, candidates: Sequence[Candidate]) -> None:
        self.channels, self.candidates = Channels(net), candidates
        self.rest, self.macs_ul = net.staged.macs, _unit_macs(net)
        self.names = {layer for _, layer in self.macs_ul}
        self.rest -= sum(macs for (unit, _), macs in self.macs_ul.items() if unit >= 0)
        self.known: dict[tuple[int, tuple[int, ...]], list[tuple[str, str, int, int]]] = {}

    def saved(self, taken: dict[int, list[int]]) -> dict[tuple[int, str], float]:
        """MACs per sample that each layer no longer spends, in each stage or exit."""
        share: dict[tuple[str, str], float] = {}
        for index, gone in taken.items():
            for layer, side, lost, width in self._losses(index, tuple(sorted(gone))):
                share[layer, side] = share.get((layer, side), 1.0) - lost / width
        return {
            (unit, layer): macs * (1 - share.get((layer, "out"), 1.0) * share.get((layer, "in"), 1.0))
            for (unit, layer), macs in self.macs_ul.items()
        }

    def macs(self, taken: dict[int, list[int]]) -> int:
        """MACs per sample of the full net."""
        saved = self.saved(taken)
        return self.rest + round(sum(macs - saved[key] for key, macs in self.macs_ul.items() if key[0] >= 0))

    def _losses(self, index: int, gone: tuple[int, ...]) -> list[tuple[str, str, int, int]]:
        key = (index, gone)
        if key not in self.known:
            group = self.channels.group(self.candidates[index].layer, gone)
            self.known[key] = [
                (part.layer, part.side, len(part.channels), self._width(part.module, part.side))
                for part in self.channels.parts(group)
                if part.layer in self.names
            ]
        return self.known[key]

    def _width(self, module: nn.Module, side: str) -> int:
        graph = self.channels.graph
        return int(graph.get_out_channels(module) if side == "out" else graph.get_in_channels(module))


@torch.no_grad()
def _unit_macs(net: DynamicNet) -> dict[tuple[int, str], int]:
    """MACs per sample of each layer in each stage (from 0) and each exit (-1 is the first); a layer may be in
    several.
    """
    found: dict[tuple[int, str], int] = {}
    live: tuple[Tensor, ...] = (rows(net),)
    with evaluating(net):
        for s, stage in enumerate(net.staged.stages):
            macs_l = layer_macs(net, _of_first(stage, live[1:]), live[0])
            found.update({(s, layer): macs for layer, macs in macs_l.items()})
            live = stage(*live)
            for e, exit in enumerate(net.exits):
                if exit.after == s:
                    macs_l = layer_macs(net, exit, live[stage.tap])
                    found.update({(-1 - e, layer): macs for layer, macs in macs_l.items()})
    return found


def _of_first(stage: nn.Module, others: tuple[Tensor, ...]) -> Callable[[Tensor], object]:
    """The stage as a function of the first live tensor."""
    return lambda x: stage(x, *others)


def predicted(net: DynamicNet, cuts: Sequence[Cut]) -> tuple[tuple[int, ...], tuple[tuple[tuple[int, ...], ...], ...]]:
    """MACs of each exit (trunk and head) and live shapes that ``cuts`` leave, without cutting."""
    if not cuts:
        whole_e = tuple(trunk + head for trunk, head in zip(net.trunk_macs_e, net.head_macs_e, strict=True))
        return whole_e, tuple(tuple(tuple(shape) for shape in stage.live_shapes) for stage in net.staged.stages)
    books = Books(net, [Candidate(cut.layer, torch.zeros(cut.of), cut.coupled) for cut in cuts])
    saved = books.saved({index: list(cut.channels) for index, cut in enumerate(cuts)})
    ends = net.exit_stages
    macs_e = [
        trunk + head - sum(less for (unit, _), less in saved.items() if 0 <= unit <= end or unit == -1 - e)
        for e, (trunk, head, end) in enumerate(zip(net.trunk_macs_e, net.head_macs_e, ends, strict=True))
    ]
    return tuple(round(macs) for macs in macs_e), _shapes(net, cuts)


def _shapes(net: DynamicNet, cuts: Sequence[Cut]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Live tensors after the cuts."""
    small = copy.deepcopy(net)
    channels = Channels(small)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for cut in cuts:
            channels.group(cut.layer, cut.channels).prune()
    with torch.no_grad():
        return tuple(tuple(tuple(tensor.shape[1:]) for tensor in live) for _, live in small.staged.walk(rows(small)))
