"""A stage's graph as a module that can be pickled and copied, whatever its functions and modules are.

``fx.GraphModule`` is pickled as code and traced anew when it is loaded: functions that no tracer follows
(``x[i] = ...``) stop that, and other threads are disturbed meanwhile. Here the nodes themselves are kept.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from dynext.graph.calls import calling_from_dicts
from dynext.graph.copying import tolerantly

MADE = {"_graph", "_code", "_lineno_map", "_prologue_start", "_tracer_cls", "_tracer_extras", "meta", "shape_env"}
"""What a GraphModule holds that follows from its graph, or is about how it came to be."""


@dataclass(frozen=True)
class NodeReference:
    """Stands for a node in the arguments of another: its place in the list."""

    place: int


@dataclass(frozen=True)
class FunctionReference:
    """Stands for a function that its module has under its name, but that calls itself otherwise (``F.max_pool2d``)."""

    module: str
    name: str

    @classmethod
    def of(cls, target: Any) -> Any:
        """The reference, for a function that has a place in a module; else ``target`` itself."""
        module, name = getattr(target, "__module__", None), getattr(target, "__name__", None)
        if module and name and getattr(sys.modules.get(module), name, None) is target:
            return cls(module, name)
        return target

    def found(self) -> Any:
        """The function."""
        return getattr(importlib.import_module(self.module), self.name)


class StageBody(fx.GraphModule):
    """An ``fx.GraphModule`` whose calls find their modules in dicts."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        state = {name: value for name, value in vars(self).items() if name not in MADE}
        return _restored, (_listed(self.graph), state)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        state = {name: tolerantly(value, memo) for name, value in vars(self).items() if name not in MADE}
        copied = memo[id(self)] = _restored(_listed(self.graph), state)
        return copied


def body_of(root: nn.Module, graph: fx.Graph) -> StageBody:
    """``graph`` as a module with what it uses of ``root``."""
    return StageBody(root, calling_from_dicts(graph))


def _listed(graph: fx.Graph) -> list[tuple[Any, ...]]:
    place: dict[fx.Node, Any] = {node: NodeReference(index) for index, node in enumerate(graph.nodes)}

    def listed(node: fx.Node) -> tuple[Any, ...]:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), place.__getitem__)
        return node.op, FunctionReference.of(node.target), args, kwargs, node.name

    return [listed(node) for node in graph.nodes]


def _restored(listed: list[tuple[Any, ...]], state: dict[str, Any]) -> StageBody:
    graph = fx.Graph()
    nodes: list[fx.Node] = []

    def node_of(argument: Any) -> Any:
        return nodes[argument.place] if isinstance(argument, NodeReference) else argument

    for op, target, args, kwargs, name in listed:
        target = target.found() if isinstance(target, FunctionReference) else target
        args, kwargs = fx.node.map_aggregate((args, kwargs), node_of)
        nodes.append(graph.create_node(op, target, args, kwargs, name))
    root = nn.Module()
    vars(root).update(state)
    body = body_of(root, graph)
    vars(body).update(state)
    return body
