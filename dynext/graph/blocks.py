"""Residual blocks: pieces that a sample may skip, because their input goes through to their output.

Between such a block's input and its output lies an addition that the input reaches unchanged; behind the addition
come at most elementwise functions. A plain convolution with matching shapes is none.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch import fx, nn

from dynext.graph.cuts import Flow

ADDITIONS = (operator.add, torch.add, "add")
RESHAPES = {"view", "reshape", "flatten", "contiguous", "unflatten", "clone"}
ELEMENTWISE = {"relu", "relu6", "leaky_relu", "elu", "gelu", "silu", "mish", "hardswish", "tanh", "sigmoid"}
ELEMENTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh,
    nn.Sigmoid, nn.Softplus,
)  # fmt: skip

Span = tuple[fx.Node, fx.Node]
"""A block from the node that it takes to the node that it gives."""


def carries(flow: Flow, start: fx.Node, end: fx.Node) -> bool:
    """Whether the tensor of ``start`` reaches that of ``end`` as an identity would, with the same shape and type."""
    first, last = flow.three[start], flow.three[end]
    if (first.shape, first.dtype) != (last.shape, last.dtype):
        return False
    # backwards from the end; "mixed": an elementwise function, or nothing yet, lies before the next addition
    waiting, known = [(end, True)], set()
    while waiting:
        node, mixed = waiting.pop()
        if node is start and not mixed:
            return True
        if (node, mixed) in known or flow.order[node] <= flow.order[start]:
            continue
        known.add((node, mixed))
        waiting.extend(_back(flow, node, mixed))
    return False


def residual_blocks(flow: Flow) -> list[Span]:
    """All residual blocks that can be cut out, first to last, none inside another: modules, else bare additions."""
    spans = _spans_of_modules(flow)
    spans.extend(_spans_between(flow, spans))
    return sorted(spans, key=lambda span: flow.order[span[0]])


def inside(flow: Flow, node: fx.Node, spans: list[Span]) -> bool:
    """Whether a cut after ``node`` would cut a block in two."""
    return any(flow.order[start] < flow.order[node] < flow.order[end] for start, end in spans)


def _spans_of_modules(flow: Flow) -> list[Span]:
    """The innermost modules that are residual blocks."""
    ends = {path: node for node in flow.nodes for path in node.meta.get("ends", ())}
    starts = flow.traced.meta["starts"]
    spans: list[Span] = []
    for path in sorted(ends, key=lambda path: -path.count(".")):
        start, end = starts.get(path), ends[path]
        if start in flow.order and _separable(flow, start, end) and not _overlaps(flow, (start, end), spans):
            spans.append((start, end))
    return spans


def _spans_between(flow: Flow, taken: list[Span]) -> Iterator[Span]:
    """Additions outside those modules, each with the nearest input that it carries on."""
    floor = 0
    for end in flow.alone:
        starts = [node for node in (flow.input, *flow.alone) if floor <= flow.order[node] < flow.order[end]]
        for start in reversed(starts):
            if _separable(flow, start, end) and not _overlaps(flow, (start, end), taken):
                last = _through_elementwise(flow, end)
                yield start, last
                floor = flow.order[last]
                break


def _separable(flow: Flow, start: fx.Node, end: fx.Node) -> bool:
    clean = end in flow.alone and (start is flow.input or start in flow.alone)
    return clean and flow.share(start) < flow.share(end) and carries(flow, start, end)


def _overlaps(flow: Flow, span: Span, spans: list[Span]) -> bool:
    begin, end = (flow.order[node] for node in span)
    return any(begin < flow.order[last] and flow.order[first] < end for first, last in spans)


def _through_elementwise(flow: Flow, node: fx.Node) -> fx.Node:
    """The activation behind an addition belongs to its block."""
    following = next(iter(node.users))
    if following in flow.alone and _is_elementwise(flow, following):
        return _through_elementwise(flow, following)
    return node


def _back(flow: Flow, node: fx.Node, mixed: bool) -> list[tuple[fx.Node, bool]]:
    """Where an identity could come from: the terms of an addition, or what an elementwise function was given."""
    sources = node.all_input_nodes
    if node.target in ADDITIONS:
        return [(source, False) for source in sources if flow.three[source].shape == flow.three[node].shape]
    if not sources:
        return []
    if flow.three[node].same or _name(node) in RESHAPES:
        return [(sources[0], mixed)]
    return [(sources[0], True)] if _is_elementwise(flow, node) else []


def _is_elementwise(flow: Flow, node: fx.Node) -> bool:
    if node.op == "call_module":
        return flow.three[node].same or isinstance(flow.traced.get_submodule(str(node.target)), ELEMENTWISE_MODULES)
    return _name(node) in ELEMENTWISE


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
