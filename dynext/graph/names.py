"""What a place in the graph is called: the path of the module that ends there, or the name of the fx node.

A module called more than once ends in several places: ``"path"`` means its last call, ``"path@0"`` its first.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from torch import fx, nn

from dynext.errors import SplitError
from dynext.graph.cuts import Flow

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def places(flow: Flow) -> dict[str, fx.Node]:
    """Every name that a cut may be asked for by, with its node."""
    named = {node.name: node for node in flow.nodes[1:-1]}
    for path, calls in _calls(flow).items():
        named.update({f"{path}@{call}": node for call, node in enumerate(calls)} if len(calls) > 1 else {})
        named[path] = calls[-1]
    for path, module in flow.model.named_modules():
        if isinstance(module, CONTAINERS) and path and path not in named:
            inside = [node for name, node in named.items() if name.startswith(f"{path}.")]
            if inside:  # a ModuleList is never called itself: it ends with its last module
                named[path] = max(inside, key=flow.order.__getitem__)
    return named


def find(flow: Flow, name: str, named: Mapping[str, fx.Node]) -> fx.Node:
    """The node behind a name.

    Raises:
        SplitError: no such place; says which name comes nearest, or which module hides it.
    """
    if name in named:
        return named[name]
    for whole in flow.traced.meta["whole"]:
        if name.startswith(f"{whole}."):
            raise SplitError(f"{name!r} is inside {whole!r}, which could not be traced and is kept whole; cut after it")
    near = difflib.get_close_matches(name, named, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "give a module path or the name of an fx node"
    raise SplitError(f"no module {name!r} is called in this net; {hint}")


def best_names(flow: Flow, named: Mapping[str, fx.Node]) -> dict[fx.Node, str]:
    """One name per node that leads back to it: its outermost block, else its outermost module, else the fx node's."""
    groups: dict[fx.Node, list[str]] = {}
    for name, node in named.items():
        groups.setdefault(node, []).append(name)
    return {node: min(names, key=lambda name: _preference(flow.model, name)) for node, names in groups.items()}


def is_block(root: nn.Module, path: str) -> bool:
    """Whether a module is one of several like parts: it has children, and stands in a sequence or beside its like."""
    module, parent = root.get_submodule(path), root.get_submodule(path.rpartition(".")[0])
    if isinstance(module, CONTAINERS) or next(module.children(), None) is None or not path:
        return False
    alike = sum(type(child) is type(module) for child in parent.children())
    return isinstance(parent, CONTAINERS) or alike > 1


def _calls(flow: Flow) -> dict[str, list[fx.Node]]:
    calls: dict[str, list[fx.Node]] = {}
    for node in flow.nodes[1:-1]:
        for path in node.meta.get("ends", ()):
            calls.setdefault(path, []).append(node)
    return calls


def _preference(root: nn.Module, name: str) -> tuple[bool, bool, int, str]:
    path = name.partition("@")[0]
    is_module = bool(path) and any(path == known for known, _ in root.named_modules())
    return not (is_module and is_block(root, path)), not is_module, path.count("."), name
