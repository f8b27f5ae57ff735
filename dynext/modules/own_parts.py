"""Heads and gates of a researcher's own: plain modules that were given, and what they are built from again.

An exit needs a module in three parts. `parts_of_own` finds them in any module: those that it names itself, or else its
last linear layer, which becomes the classifier, with all that comes before it as the embedder.

Shapes: b samples, d numbers in an embedding, k classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynext.modules.exit_layers import Cosine
from dynext.modules.layer_outputs import logits_layer
from dynext.modules.modes import evaluating
from dynext.seeding import generator

Factory = Callable[..., Any]
"""What gives a module for a tap's shape, as it was given."""


class ExitParts(NamedTuple):
    """What an exit runs, one after the other: see `dynext.modules.exits`."""

    reduce: nn.Module
    embedder: nn.Module
    classifier: nn.Module
    whole: bool = False
    """The classifier is all of it: what goes into it is no embedding."""


class OwnPart:
    """A module as it was given, kept aside so that it can be built again: nets that are copied share it, nobody trains
    it.

    ``factory`` gives its like for another tap; ``None`` where the module itself was given.
    """

    def __init__(self, module: nn.Module, factory: Factory | None) -> None:
        self._module, self.factory = module, factory

    def fresh(self) -> nn.Module:
        """A copy of its own."""
        return copy.deepcopy(self._module)

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnPart:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return OwnPart, (self._module, None)  # a lambda cannot be pickled, and is not needed to run


def parts_of_own(module: nn.Module, tap: Sequence[int]) -> ExitParts:
    """The three parts of ``module``, which answers taps ``[b ...]`` by logits ``[b k]``; together they answer alike.

    Modules ``embedder`` and ``classifier`` (and perhaps ``reduce``, without parameters) that it has are taken, if they
    are all that it does. Otherwise its last linear layer is its classifier, and the rest, with nothing in that layer's
    place, its embedder. A module that ends otherwise stays whole: it then has no embedding.
    """
    x = noise(module, tap)
    with torch.no_grad(), evaluating(module):
        wanted = module(x.clone())
        for split in (_named, _cut_before_last):
            parts = None
            with suppress(RuntimeError, AttributeError, TypeError, NotImplementedError):
                parts = split(module, x)
                if parts is not None and _agree(parts, x, wanted):
                    return parts
    return ExitParts(nn.Identity(), nn.Identity(), module, whole=True)


def noise(module: nn.Module, shape: Sequence[int], count: int = 3, seed: int = 0) -> Tensor:
    """Random samples ``[count ...]`` of a shape, of the type of the module's tensors and on their device."""
    tensors = [*module.parameters(), *module.buffers()]
    like = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(()))
    return torch.randn(count, *shape, generator=generator(seed)).to(like)


def _agree(parts: ExitParts, x: Tensor, wanted: Tensor) -> bool:
    with evaluating(parts.embedder), evaluating(parts.classifier):
        embedding = parts.embedder(parts.reduce(x.clone()))
        return embedding.ndim == 2 and torch.equal(parts.classifier(embedding), wanted)


def _named(module: nn.Module, x: Tensor) -> ExitParts | None:
    given: list[Any] = [getattr(module, name, None) for name in ("embedder", "classifier")]
    given.insert(0, getattr(module, "reduce", nn.Identity()))
    if not all(isinstance(part, nn.Module) for part in given) or any(given[0].parameters()) or module._parameters:
        return None
    apart = {id(inner) for part in given for inner in part.modules()}
    complete = {id(inner) for inner in module.modules()} <= {id(module), *apart}  # a dropout beside them would be lost
    return ExitParts(*given) if complete else None


def _cut_before_last(module: nn.Module, x: Tensor) -> ExitParts | None:
    linears = [m for m in module.modules() if isinstance(m, nn.Linear | Cosine)]
    last = logits_layer(module, x.clone(), linears)
    if last is None or last is module:
        return None if last is None else ExitParts(nn.Identity(), nn.Identity(), module)
    elsewhere = {id(p) for inner in module.modules() if inner is not last for p in inner._parameters.values()}
    if elsewhere & {id(p) for p in last.parameters()} - {id(None)}:
        return None  # a weight that other layers share must stay theirs
    embedder = copy.deepcopy(module, {id(last): nn.Identity()})
    return ExitParts(nn.Identity(), embedder, last)


def own_macs(counted: int, module: nn.Module) -> int:
    """MACs per sample of a module of one's own of which ``counted`` were seen. Where none was, because it multiplies by
    no operation that torch counts, each number that it holds counts once.
    """
    held = [*module.parameters(), *module.buffers()]
    return counted or sum(tensor.numel() for tensor in held)
