"""The part of a net that one task runs again and again: from where its adapted parameters begin to its exits.

What comes before does not change in the inner loop: it is run once for all tasks on the same samples, with its graph,
so that the outer gradient still reaches it. The result is the same gradient at a fraction of the cost.

Shapes: b samples, k classes, e exits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dynext.graph.stage import Stage, walk
from dynext.net.dynamic_net import DynamicNet

Live = tuple[Tensor, ...]
"""The tensors that are live at a cut, each ``[b ...]``."""


class Learner(nn.Module):
    """The live tensors before stage ``begin`` (0: the samples themselves) to the logits ``[b k]`` of ``exits``, in
    order.

    It holds the net's own modules: its parameters are the net's.
    """

    def __init__(self, net: DynamicNet, exits: Sequence[int], begin: int = 0) -> None:
        super().__init__()
        exits = sorted(exits)
        last = net.num_exits - 1
        places = [len(net.staged.stages) - 1 if e == last else int(net.exits[e].after) for e in exits]
        self.begin, self.numbers = begin, tuple(exits)
        self.stages = cast("list[Stage]", nn.ModuleList(list(net.staged.stages)[begin : max(places) + 1]))
        self.heads = nn.ModuleList(net.exits[e] for e in exits if e != last)
        self.taps = tuple(int(net.staged.stages[place].tap) for place in places)
        self.places = tuple(place - begin for place in places)
        """After which of its stages each exit stands; -1 where it stands right at the beginning."""

    def forward(self, *live: Tensor) -> list[Tensor]:
        lives = [live, *(after for _, after in walk(self.stages, *live))]
        heads = iter(self.heads)
        early = len(self.heads)
        return [
            next(heads)(lives[place + 1][tap]) if i < early else lives[place + 1][0]
            for i, (place, tap) in enumerate(zip(self.places, self.taps, strict=True))
        ]


class Trunk(nn.Module):
    """Samples ``[b ...]`` to the live tensors before each of the stages in ``begins``."""

    def __init__(self, net: DynamicNet, begins: Iterable[int]) -> None:
        super().__init__()
        self.begins = tuple(sorted(set(begins)))
        self.stages = cast("list[Stage]", nn.ModuleList(list(net.staged.stages)[: max(self.begins)]))

    def forward(self, x: Tensor) -> list[Live]:
        lives: list[Live] = [(x,), *(live for _, live in walk(self.stages, x))]
        return [lives[begin] for begin in self.begins]


def begins_at(net: DynamicNet, exits: Sequence[int], adapted: Iterable[nn.Parameter | Tensor]) -> int:
    """The first stage whose result changes when ``adapted`` do: where a learner of these exits must begin.

    Parameters may be tied: a head that shares a tensor with the first stage begins there.
    """
    wanted = set(adapted)
    for s, stage in enumerate(net.staged.stages):
        if wanted & set(stage.parameters()):
            return s
    last = net.num_exits - 1
    return min(len(net.staged.stages) - 1 if e == last else int(net.exits[e].after) + 1 for e in exits)


_PLACES: WeakKeyDictionary[nn.Module, dict[str, tuple[str, ...]]] = WeakKeyDictionary()


def called_with(module: nn.Module, tensors: Mapping[str, Tensor], inputs: Live) -> Any:
    """``module(*inputs)`` with some of its parameters and buffers replaced, by their names in it; tied ones everywhere.

    ``torch.func.functional_call`` ties weights by name. A module that stands in two places has two names for one
    place, and the second is then put back to what the first was replaced by: the module keeps a foreign tensor. Here
    each place is named once.
    """
    places = _PLACES.get(module)
    if places is None:
        places = _PLACES[module] = _places(module)
    everywhere = {place: tensor for name, tensor in tensors.items() for place in places[name]}
    return torch.func.functional_call(module, everywhere, inputs, tie_weights=False)


def _places(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """For each parameter and buffer, by each of its names: one name of every place that holds it."""
    of_tensor: dict[int, list[str]] = {}
    for path, part in module.named_modules():
        held = [*part.named_parameters("", False, False), *part.named_buffers("", False, False)]
        for key, tensor in held:
            of_tensor.setdefault(id(tensor), []).append(f"{path}.{key}".lstrip("."))
    return {name: tuple(names) for names in of_tensor.values() for name in names}
