"""How good a place is for an automatic cut: ends of blocks first, never between a layer and what completes it.

A convolution, its normalization and its activation belong together, and so do an addition and the activation behind it,
however they are written. The last of them is where the module or the block ends.
"""

from __future__ import annotations

import operator

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase

from dynext.graph.blocks import ADDITIONS, ELEMENTWISE, ELEMENTWISE_MODULES
from dynext.graph.cuts import Flow
from dynext.graph.names import is_block

BLOCK, MODULE, ELSEWHERE, UNFINISHED = range(4)
"""What ends at a node. `dynext.graph.cuts.PENALTY` has a number for each."""
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)
NORM_FUNCTIONS = {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "normalize"}
ACTIVATIONS = ELEMENTWISE | {
    "hardtanh",
    "clamp",
    "clamp_min",
    "relu_",
    "hardsigmoid",
    "selu",
    "celu",
    "softplus",
    "prelu",
}
ACTIVATION_NAMES = ("relu", "swish", "silu", "gelu", "mish", "act", "tanh", "sigmoid", "elu")


def tiers(flow: Flow) -> dict[fx.Node, int]:
    """Per node `BLOCK` where a block or a residual addition ends, `MODULE` where any module, `UNFINISHED` where what
    follows completes it, else `ELSEWHERE`.
    """
    tier = {node: _tier(flow, node) for node in flow.nodes}
    for node in flow.nodes:
        last = _completion(flow, node)
        if last is not None:
            tier[last] = min(tier[last], tier[node])
            tier[node] = UNFINISHED
    return tier


def is_composite(root: nn.Module, path: str) -> bool:
    """Whether a module is one of several like parts, with at least two layers with weights in it."""
    if not is_block(root, path):
        return False
    weighted = (any(p.ndim > 1 for p in m.parameters(recurse=False)) for m in root.get_submodule(path).modules())
    return sum(weighted) > 1


def _tier(flow: Flow, node: fx.Node) -> int:
    ends = node.meta.get("ends", ())
    if any(is_composite(flow.model, path) for path in ends) or _is_residual(flow, node):
        return BLOCK
    return MODULE if ends else ELSEWHERE


def _is_residual(flow: Flow, node: fx.Node) -> bool:
    """Whether a node adds two tensors of the samples."""
    if node.target not in ADDITIONS or len(node.all_input_nodes) != 2:
        return False
    return all(s not in flow.free and flow.three[s].shape == flow.three[node].shape for s in node.all_input_nodes)


def _completion(flow: Flow, node: fx.Node) -> fx.Node | None:
    """The normalization or activation behind a node that belongs to it."""
    users = [user for user in node.users if flow.three.get(user) is not None and flow.three[user].is_tensor]
    if len(users) == 2 and users[1] in users[0].users and users[1].target in (operator.mul, "mul"):
        users = users[1:]  # x * sigmoid(x)
    elif len(users) != 1 or not (_is_activation(flow, users[0]) or _is_norm(flow, users[0])):
        return None
    last = users[0]
    if _is_norm(flow, last) and flow.two[node].macs == 0:
        return None  # it prepares what comes after it
    if not (flow.two[node].macs > 0 or _is_norm(flow, node) or _is_residual(flow, node) or _adds(node)):
        return None
    blocks = [path for path in node.meta.get("ends", ()) if is_composite(flow.model, path)]
    if blocks and _scope(last) != blocks[-1].rpartition(".")[0]:
        return None  # the next block begins with it
    return last


def _adds(node: fx.Node) -> bool:
    return node.target in ADDITIONS


def _scope(node: fx.Node) -> str:
    """The path of the module whose forward made the node."""
    if node.op == "call_module":
        return str(node.target).rpartition(".")[0]
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def _is_norm(flow: Flow, node: fx.Node) -> bool:
    if node.op == "call_module":
        module = flow.traced.get_submodule(str(node.target))
        return isinstance(module, NORMS) or "norm" in type(module).__name__.lower()
    return _name(node) in NORM_FUNCTIONS


def _is_activation(flow: Flow, node: fx.Node) -> bool:
    if node.op != "call_module":
        return _name(node) in ACTIVATIONS
    module = flow.traced.get_submodule(str(node.target))
    named = any(part in type(module).__name__.lower() for part in ACTIVATION_NAMES)
    return isinstance(module, ELEMENTWISE_MODULES) or (named and flow.two[node].macs == 0)


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
