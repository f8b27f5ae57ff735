"""The graph in the form that cuts need: constants written out, tuples taken apart at once, nothing dead."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from dynext.graph.probe import NodeRecord

SIZE_METHODS = {"size", "dim", "ndimension", "numel", "nelement"}
SIZE_ATTRIBUTES = {"shape", "ndim"}
KIND_ATTRIBUTES = {"dtype", "device"}


def normalize(traced: fx.GraphModule, two: Mapping[fx.Node, NodeRecord], three: Mapping[fx.Node, NodeRecord]) -> None:
    """Rewrite in place; ``two`` and ``three`` are what the nodes gave with 2 and with 3 samples."""
    _write_out_sizes(traced.graph, two, three)
    _name_squeezed(traced.graph, three)
    _take_tuples_apart(traced.graph, three)
    for node in list(traced.graph.nodes):
        if node.target is torch._assert and not _is_tensor(node.args[0], three):
            traced.graph.erase_node(node)  # about sizes, checked in both runs
    traced.graph.eliminate_dead_code()
    traced.graph.lint()


def _is_tensor(value: Any, records: Mapping[fx.Node, NodeRecord]) -> bool:
    return isinstance(value, fx.Node) and records[value].is_tensor


def is_kind_query(node: fx.Node) -> bool:
    """``x.dtype`` or ``x.device``: never written out, for a net that moves or changes its precision."""
    return node.target is getattr and node.args[1] in KIND_ATTRIBUTES


def free_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that do not depend on the samples: each stage that needs one computes it itself."""
    free: set[fx.Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        computed = node.op not in ("placeholder", "output") and all(source in free for source in inputs)
        if computed or is_kind_query(node):
            free.add(node)
    return free


def _write_out_sizes(graph: fx.Graph, two: Mapping[fx.Node, NodeRecord], three: Mapping[fx.Node, NodeRecord]) -> None:
    """Sizes other than the batch are constants of a net with a fixed input shape.

    What is computed from the number of samples is none, even where 2 and 3 samples agree (``b // 4``).
    """
    from_sizes: set[fx.Node] = set()
    follows: set[fx.Node] = set()
    for node in graph.nodes:
        if not is_plain(three[node].value) or not _comes_from_sizes(node, from_sizes, three):
            continue
        from_sizes.add(node)
        if two[node].value != three[node].value or (_follows(node, follows) and not _is_one_size(node)):
            follows.add(node)
            continue
        for user in list(node.users):
            _replace(user, node, _plain(three[node].value))


def _follows(node: fx.Node, follows: set[fx.Node]) -> bool:
    return any(source in follows for source in node.all_input_nodes)


def _is_one_size(node: fx.Node) -> bool:
    """Whether a node picks some out of a tensor's shape."""
    source = node.args[0] if node.target is operator.getitem else None
    return isinstance(source, fx.Node) and is_size_query(source) and not isinstance(node.args[1], fx.Node)


def _comes_from_sizes(node: fx.Node, known: set[fx.Node], records: Mapping[fx.Node, NodeRecord]) -> bool:
    """Whether a value follows from sizes alone. One read from a tensor's content (``item``) is no constant."""
    if node.op not in ("call_function", "call_method"):
        return False
    if any(records[source].is_tensor for source in node.all_input_nodes):
        return is_size_query(node)
    return all(source in known for source in node.all_input_nodes)


def is_size_query(node: fx.Node) -> bool:
    """Whether a node asks a tensor for nothing but its shape."""
    if node.op == "call_method":
        return node.target in SIZE_METHODS
    return node.target is len or (node.target is getattr and node.args[1] in SIZE_ATTRIBUTES)


def is_plain(value: Any) -> bool:
    """Whether a value is a number, or numbers."""
    if isinstance(value, tuple | list):
        return all(is_plain(item) for item in value)
    return isinstance(value, int | float | bool)


def _plain(value: Any) -> Any:
    """``torch.Size`` as the tuple it is."""
    return tuple(_plain(item) for item in value) if isinstance(value, tuple) else value


def _replace(user: fx.Node, node: fx.Node, value: Any) -> None:
    def constant(argument: fx.Node) -> Any:
        return value if argument is node else argument

    user.args = fx.node.map_arg(user.args, constant)
    user.kwargs = fx.node.map_arg(user.kwargs, constant)


def _name_squeezed(graph: fx.Graph, records: Mapping[fx.Node, NodeRecord]) -> None:
    """``x.squeeze()`` would take the batch away too once a sample is alone: say which dimensions are meant."""
    for node in graph.nodes:
        if node.target in ("squeeze", torch.squeeze) and len(node.args) == 1 and not node.kwargs:
            shape = records[node.args[0]].shape or ()
            node.args = (*node.args, tuple(dim for dim, size in enumerate(shape) if size == 1))


def _take_tuples_apart(graph: fx.Graph, records: Mapping[fx.Node, NodeRecord]) -> None:
    """Move ``chunks[0]`` right behind ``chunks``, so that tensors and not tuples go across cuts."""
    for node in list(graph.nodes):
        source = node.args[0] if node.target is operator.getitem else None
        if isinstance(source, fx.Node) and not records[source].is_tensor and not isinstance(node.args[1], fx.Node):
            source.append(node)
