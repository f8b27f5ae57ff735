"""Where a net's last map lies: the last stage cut once more, so that what is pooled away at its end can be seen.

Shapes: of one sample, without the batch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from dynext.graph.body import body_of
from dynext.graph.macs import count_macs
from dynext.graph.normal import free_nodes
from dynext.graph.stage import LiveTensors, Stage, StagedNet, walk

DEEPEST = "deepest map"
"""Name of the stage that ends there."""


def with_deepest(staged: StagedNet) -> StagedNet:
    """The same chain with its last stage cut after its deepest map, as a stage whose tap that map is.

    It shares every module with ``staged``, so it is a way to watch that net and no net of its own. Where the last stage
    was given by hand, or has no map to cut after, ``staged`` itself is handed back.
    """
    last = staged.stages[-1]
    if not isinstance(last.body, fx.GraphModule):
        return staged
    live = _live_into_last(staged)
    interpreter = _Recording(last.body)
    interpreter.run(*live)
    values = interpreter.values
    for node in reversed(list(last.body.graph.nodes)):
        across = _across(last.body.graph, node)
        if _is_map(values.get(node)) and all(_is_per_sample(values[other]) for other in across):
            return _cut(staged, node, across, live)
    return staged


@torch.no_grad()
def _live_into_last(staged: StagedNet) -> LiveTensors:
    x = staged.zeros(2)
    lives = [(x,), *(live for _, live in walk(staged.stages[:-1], x))]
    return lives[-1]


class _Recording(fx.Interpreter):
    """Runs a graph and keeps what each node gave."""

    def __init__(self, body: fx.GraphModule) -> None:
        super().__init__(body)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        with torch.no_grad():
            self.values[n] = super().run_node(n)
        return self.values[n]


def _is_per_sample(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == 2


def _is_map(value: Any) -> bool:
    """Several positions a sample: ``[b c h w]``, ``[b h w c]`` or tokens ``[b t d]``."""
    return _is_per_sample(value) and value.ndim in (3, 4) and math.prod(value.shape[1:]) > max(value.shape[1:])


def _across(graph: fx.Graph, end: fx.Node) -> list[fx.Node]:
    """The nodes that are computed once ``end`` is and used after it, ``end`` itself first."""
    free, before = free_nodes(graph), set()
    for node in graph.nodes:
        before.add(node)
        if node is end:
            break
    needed = {source for node in graph.nodes if node not in before | free for source in node.all_input_nodes}
    return [end, *(node for node in graph.nodes if node in needed & before - free and node is not end)]


def _cut(staged: StagedNet, end: fx.Node, across: list[fx.Node], live: LiveTensors) -> StagedNet:
    last = staged.stages[-1]
    assert isinstance(last.body, fx.GraphModule)  # noqa: S101
    placed = [node for node in last.body.graph.nodes if node.op == "placeholder"]
    result = next(node for node in last.body.graph.nodes if node.op == "output")
    first = _part(last.body, placed, across)
    with torch.no_grad():
        between = first(*live)
    second = _part(last.body, across, list(result.all_input_nodes))
    stages = [
        _stage(first, DEEPEST, live, between),
        _stage(second, last.name, between, tuple(second(*between))),
    ]
    return StagedNet(
        [*staged.stages[:-1], *stages],
        input_shape=staged.input_shape,
        num_classes=staged.num_classes,
        granularity=staged.granularity,
    ).train(staged.training)


def _part(body: fx.GraphModule, given: list[fx.Node], wanted: list[fx.Node]) -> fx.GraphModule:
    """The piece of ``body`` that computes ``wanted`` from ``given``."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in given}

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:
            for source in node.all_input_nodes:
                copied(source)
            copies[node] = graph.node_copy(node, copies.__getitem__)
        return copies[node]

    graph.output(tuple(copied(node) for node in wanted))
    return body_of(body, graph)


def _stage(body: fx.GraphModule, name: str, live_in: LiveTensors, live_out: LiveTensors) -> Stage:
    live = [(tuple(tensor.shape[1:]), tensor.dtype) for tensor in live_out]
    macs = count_macs(body, *live_in)
    return Stage(body, name=name, num_live_in=len(live_in), live=live, tap=0, skippable=False, macs=macs)
