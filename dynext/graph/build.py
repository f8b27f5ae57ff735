"""One stage's graph out of the whole one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from dynext.graph.batch import is_batch_read, read_anew
from dynext.graph.body import body_of
from dynext.graph.cuts import Flow
from dynext.graph.inplace import reuse_buffers
from dynext.graph.normal import is_kind_query


def build_body(
    flow: Flow, nodes: Sequence[fx.Node], live_in: Sequence[fx.Node], live_out: Sequence[fx.Node]
) -> tuple[fx.GraphModule, list[fx.Node]]:
    """A module from live tensors to live tensors, which registers all it uses, and the nodes it computes.

    Parameters, and whatever else does not depend on the samples, come along where they are needed, so no cut has to
    carry them; a parameter that two stages use stays one tensor.
    """
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in live_in}
    computed: list[fx.Node] = []

    def copied(node: fx.Node) -> Any:
        if node not in copies:
            if is_kind_query(node) and node.args[0] not in copies:
                return _kind_of_live(flow, node, copies, live_in)
            if is_batch_read(node) and node.args[0] not in copies:
                copies[node] = read_anew(graph, node, copies[live_in[0]])
                return copies[node]
            copies[node] = graph.node_copy(node, copied)
            computed.append(node)
        return copies[node]

    for node in nodes:
        if node not in flow.free:
            copied(node)
    graph.output(tuple(copied(node) for node in live_out))
    graph.lint()
    body = body_of(flow.traced, graph)
    reuse_buffers(body)
    return body, computed


def _kind_of_live(flow: Flow, node: fx.Node, copies: dict[fx.Node, fx.Node], live_in: Sequence[fx.Node]) -> Any:
    """``x.dtype`` or ``x.device`` of a tensor that is gone, asked of one that is here and agrees; else written out."""
    source, attribute = node.all_input_nodes[0], node.args[1]
    for other in live_in:
        if attribute == "device" or flow.three[other].dtype == flow.three[source].dtype:
            with copies[other].graph.inserting_after(copies[live_in[-1]]):
                copies[node] = copies[other].graph.call_function(getattr, (copies[other], attribute))
            return copies[node]
    value = flow.three[node].value
    return value if isinstance(value, torch.dtype | torch.device) else None
