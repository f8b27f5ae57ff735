"""In-place work made functional on the private copy, and done in place again inside a stage where none can tell.

An in-place operation after a cut would change the features that an exit or an alignment term has kept. The rewritten
graph computes the same: whoever read the changed tensor afterwards now reads the new one.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

OPERATORS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def remove_inplace(traced: fx.GraphModule, changed: Mapping[fx.Node, Sequence[fx.Node]]) -> None:
    """Rewrite the graph; ``changed`` says which nodes' tensors each node was seen to change in place."""
    order = {node: index for index, node in enumerate(traced.graph.nodes)}
    for node in list(traced.graph.nodes):
        _switch_off(traced, node)
        names = list(changed.get(node, ()))
        if node.target is operator.setitem:
            node.target = with_item
        twin = OPERATORS.get(node.target) or (_twin(node) if names else None)
        if twin is not None:
            node.target = twin
        if names:
            new = node if twin or _switched(traced, node) or node.target is with_item else _clone(node, names)
            _read_instead(names, new, [n for n, index in order.items() if index > order[node]])
    traced.graph.lint()
    traced.recompile()


ACTIVATIONS = {nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.LeakyReLU}
FUNCTIONS: dict[Any, Any] = {f: f for f in (F.relu, F.relu6, F.silu, F.hardswish)} | {torch.relu: F.relu}
NEW_TENSOR = {nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.Linear}
"""Layers that give a new tensor and do not need it again in the backward pass. So do sums."""
SUMS = (operator.add, torch.add)


def reuse_buffers(body: fx.GraphModule) -> None:
    """Let activations overwrite what a layer has just given, if nothing else reads it: about a tenth of the time of
    large batches. What a stage is given or gives is never overwritten before it is complete.
    """
    for node in list(body.graph.nodes):
        source = node.all_input_nodes[0] if len(node.all_input_nodes) == 1 else None
        if source is None or len(source.users) > 1 or not _is_new(body, source):
            continue
        if node.op == "call_function" and node.target in FUNCTIONS and len(node.args) == 1:
            node.target, node.kwargs = FUNCTIONS[node.target], {**node.kwargs, "inplace": True}
        elif node.op == "call_method" and node.target == "relu":
            node.op, node.target, node.kwargs = "call_function", F.relu, {"inplace": True}
        elif node.op == "call_module" and type(body.get_submodule(node.target)) in ACTIVATIONS:
            twin = copy.copy(body.get_submodule(node.target))  # others may call the same module elsewhere
            twin.inplace = True  # type: ignore[assignment]
            node.target = f"{node.target}_in_place"
            body.add_submodule(node.target, twin)
    body.recompile()


def _is_new(body: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(body.get_submodule(str(node.target))) in NEW_TENSOR
    return node.op == "call_function" and node.target in SUMS and len(node.all_input_nodes) == 2


def with_item(x: Tensor, index: Any, value: Any) -> Tensor:
    """``x[index] = value`` on a copy."""
    copied = x.clone()
    copied[index] = value
    return copied


def _switch_off(traced: fx.GraphModule, node: fx.Node) -> None:
    """Say ``inplace=False`` where there is such a switch, also where eval mode hides its effect (dropout)."""
    if node.kwargs.get("inplace") is True:
        node.kwargs = {**node.kwargs, "inplace": False}
        node.meta["switched"] = True
    if node.op == "call_module":
        module = traced.get_submodule(str(node.target))
        if getattr(module, "inplace", None) is True and next(module.children(), None) is None:
            module.inplace = False  # type: ignore[assignment]


def _switched(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return getattr(traced.get_submodule(str(node.target)), "inplace", None) is False
    return "switched" in node.meta


def _twin(node: fx.Node) -> Any:
    """``add`` for ``add_``, as a method or as a function of torch."""
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    plain = str(name)[:-1]
    if not str(name).endswith("_") or str(name).endswith("__"):
        return None
    if node.op == "call_method":
        return plain if hasattr(Tensor, plain) else None
    return getattr(torch, plain, None) or getattr(F, plain, None)


def _clone(node: fx.Node, names: Sequence[fx.Node]) -> fx.Node:
    """No functional twin is known: let ``node`` change a copy."""
    with node.graph.inserting_before(node):
        copied = node.graph.call_method("clone", (names[0],))
    copied.meta["copy_of"] = names[0]
    for name in names:
        node.replace_input_with(name, copied)
    return copied


def _read_instead(names: Sequence[fx.Node], new: fx.Node, later: Sequence[fx.Node]) -> None:
    users = set(later)
    for name in names:
        for user in [user for user in name.users if user in users]:
            user.replace_input_with(name, new)
