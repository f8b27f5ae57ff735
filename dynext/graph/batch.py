"""Python values that follow the number of samples: read anew in each stage, so that none goes stale.

``b = x.shape[0]`` read at the start and used at the end would be wrong once samples have left between. A stage that
needs such a value, and does not hold the tensor that it was read from, takes it from a tensor that it was given.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import fx

from dynext.graph.normal import is_plain, is_size_query
from dynext.graph.probe import BATCHES, NodeRecord

Records = Mapping[fx.Node, NodeRecord]


def mark_batch_reads(graph: fx.Graph, two: Records, three: Records) -> None:
    """Note on each question for a size that follows the number of samples how: ``meta["batch"]``, per sample."""
    for node in graph.nodes:
        if is_size_query(node) and three[node].value is not None and two[node].value != three[node].value:
            per_sample = _per_sample(two[node].value, three[node].value)
            if per_sample is not None:
                node.meta["batch"] = per_sample


def is_batch_read(node: fx.Node) -> bool:
    """Whether a stage can read this value from any tensor that it is given."""
    return "batch" in node.meta


def batch_values(graph: fx.Graph, free: set[fx.Node], records: Records) -> set[fx.Node]:
    """Nodes that follow from such values and from ``free`` nodes alone, and cost nothing: each stage computes them."""
    values: set[fx.Node] = set()
    for node in graph.nodes:
        known = all(source in values or source in free for source in node.all_input_nodes)
        follows = known and any(source in values for source in node.all_input_nodes)
        cheap = node.op in ("call_function", "call_method") and records[node].macs == 0
        if is_batch_read(node) or (follows and cheap):
            values.add(node)
    return values


def read_anew(graph: fx.Graph, node: fx.Node, given: fx.Node) -> fx.Node:
    """The value of ``node``, from a tensor ``[b ...]`` that the stage is given."""
    count = graph.call_method("size", (given, 0))
    return graph.call_function(scaled, (count, node.meta["batch"]))


def scaled(count: Any, per_sample: Any) -> Any:
    """``count`` times each number that is given in brackets, beside those that are the same for all samples.

    >>> scaled(5, ([2], 8, 8))
    (10, 8, 8)
    """
    if isinstance(per_sample, tuple):
        return tuple(scaled(count, item) for item in per_sample)
    if isinstance(per_sample, list):
        return count if per_sample == [1] else operator.mul(count, per_sample[0])
    return per_sample


def _per_sample(two: Any, three: Any) -> Any:
    """What `scaled` makes the values of both runs of; ``None`` where it cannot."""
    if isinstance(two, tuple) and isinstance(three, tuple) and len(two) == len(three):
        items = tuple(_per_sample(*pair) for pair in zip(two, three, strict=True))
        return None if None in items else items
    if not is_plain(two) or isinstance(two, tuple | list):
        return None
    if two == three:
        return two
    small, large = BATCHES
    return [two // small] if two % small == 0 and two * large == three * small else None
