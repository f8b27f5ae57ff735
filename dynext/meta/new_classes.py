"""A net for other classes: the same trunk and embeddings, a new classifier at every exit."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from dynext.errors import FitError
from dynext.meta.exit_ownership import checked_exits
from dynext.meta.prototypes import classifier_of
from dynext.net.attach import from_specs, own_parts
from dynext.net.dynamic_net import DynamicNet
from dynext.net.reclassify import replace_last
from dynext.seeding import seeded
from dynext.usual_modes import in_usual_modes


@in_usual_modes
def with_classes(net: DynamicNet, num_classes: int, *, seed: int = 0) -> DynamicNet:
    """A copy of ``net`` that answers ``num_classes`` classes: every exit's classifier is new and untrained.

    Everything else stays as it is, gates included; measured stage times are dropped.

    Raises:
        FitError: fewer than two classes, a cascade, or a net that does not end in an ``nn.Linear``.
    """
    if num_classes < 2:
        raise FitError(f"num_classes={num_classes}; a classifier tells 2 or more classes apart")
    checked_exits(net, None)
    classifier_of(net, -1)  # refuses a net without one
    staged = copy.deepcopy(net.staged)
    with seeded(seed):
        replace_last(staged, num_classes, answer="linear")
        specs = [{**exit.spec, "num_classes": num_classes} for exit in net.exits]
        gates = None if net.gates is None else net.gates.spec
        renewed = from_specs(staged, specs, [exit.after for exit in net.exits], gates, **own_parts(net))
    for new, old in zip(renewed.exits, net.exits, strict=True):
        new.embedder.load_state_dict(old.embedder.state_dict())
    if renewed.gates is not None and net.gates is not None:
        renewed.gates.load_state_dict(net.gates.state_dict())
    renewed.seen = net.seen
    return renewed


@in_usual_modes
def recipe_with_classes(recipe: Mapping[str, Any] | None, num_classes: int) -> dict[str, Any] | None:
    """A catalog's recipe of the same architecture for ``num_classes`` classes; ``None`` for a net of one's own."""
    if recipe is None or recipe["kind"] == "file":
        return None
    return {**recipe, "arguments": {**recipe["arguments"], "num_classes": num_classes}}
