"""What somebody should know of a split before hours of work are built on it: a net that cannot save anything."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from dynext.graph import cuts
from dynext.graph.cuts import Flow
from dynext.graph.lines import place

LATE = 0.9
"""A first exit at this share of the MACs or later saves next to nothing."""
MOST = 0.5
"""A module that holds more than this share of the MACs and is kept whole leaves little to cut between."""


def notes_on(flow: Flow, chosen: Sequence[fx.Node]) -> tuple[str, ...]:
    """With module, line and reason: modules kept whole that hold most of the net; a first cut that is late."""
    whole = [_whole_note(flow, path) for path in flow.traced.meta["whole"] if _share(flow, path) > MOST]
    leaves = [_leaf_note(flow, node) for node in flow.nodes if _is_large_leaf(flow, node)]
    first = min((flow.share(node) for node in chosen), default=1.0)
    late = [] if first < LATE else [f"the first exit would stand at {_percent(first)} of the MACs: {_why(flow)}"]
    return (*whole, *leaves, *late)


def why_whole(flow: Flow) -> str | None:
    """The module kept whole that costs most, and why it is."""
    paths = sorted(flow.traced.meta["whole"], key=lambda path: -_share(flow, path))
    return _whole_note(flow, paths[0]) if paths and _share(flow, paths[0]) > 0 else None


def _whole_note(flow: Flow, path: str) -> str:
    kind = type(flow.model.get_submodule(path)).__name__
    reason = flow.traced.meta["reasons"][path]
    return (
        f"{path} ({kind}) holds {_percent(_share(flow, path))} of the MACs and is kept whole, so no exit can stand "
        f"inside it: {reason}"
    )


def _is_large_leaf(flow: Flow, node: fx.Node) -> bool:
    """A module of somebody's own, without modules in it, that computes most of the net."""
    if node.op != "call_module" or node.target in flow.traced.meta["whole"]:
        return False
    kind = type(flow.traced.get_submodule(str(node.target)))
    layer = kind.__module__.startswith("torch.nn.modules") and "Transformer" not in kind.__name__
    return not layer and _share(flow, str(node.target)) > MOST


def _leaf_note(flow: Flow, node: fx.Node) -> str:
    return (
        f"{place(flow.traced, node)} holds {_percent(_share(flow, str(node.target)))} of the MACs and is kept whole, "
        f"so no exit can stand inside it: it has no modules of its own to cut between"
    )


def _share(flow: Flow, path: str) -> float:
    total = sum(record.macs for record in flow.two.values())
    return sum(flow.two[node].macs for node in flow.nodes if node.target == path) / max(total, 1)


def _why(flow: Flow) -> str:
    """What is in the way of an earlier cut, at the place where it keeps most from being saved."""
    earlier = [node for node in flow.candidates if flow.share(node) < LATE]
    if earlier:
        return f"it was asked for there; {len(earlier)} places before it are possible (after=None chooses among them)"
    whole = why_whole(flow)
    if whole is not None:
        return whole
    between = [node for node in flow.nodes if 0 < flow.share(node) < LATE]
    reasons = [reason for node in between if (reason := cuts.obstacle(flow, flow.order[node])) is not None]
    if reasons:
        return reasons[len(reasons) // 2]
    return "one layer costs nearly everything, or several tensors are live everywhere before it"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
