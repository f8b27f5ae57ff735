"""Where a graph can be cut: live sets, what stands in the way, placement by share of MACs.

A tensor is live at a cut when it is defined at or before it and used after it. A stage hands on all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import fx, nn

from dynext.errors import SplitError
from dynext.graph.batch import batch_values, is_batch_read
from dynext.graph.normal import free_nodes, is_kind_query
from dynext.graph.probe import BATCHES, NodeRecord

DEFAULT_SHARES = (0.12, 0.24, 0.36, 0.55, 0.75)
"""Denser in front, where a sample that leaves saves most; an exit that `choose` leaves off costs nothing."""
TAP_RANKS = (2, 3, 4)  # [b d], [b t d], [b c h w] or [b h w c]
PENALTY = (0.0, 0.10, 0.14, 0.30)
"""Added to how far a cut is from its share where a block ends there, where any module ends, elsewhere, and where what
follows belongs to it (`dynext.graph.ends`)."""
REACH = 0.2
"""An automatic cut farther than this from the share it was meant for is left out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Flow:
    """A model, its normalized graph, and what the nodes gave for 2 and for 3 samples; positions count the nodes."""

    model: nn.Module
    traced: fx.GraphModule
    two: Mapping[fx.Node, NodeRecord]
    three: Mapping[fx.Node, NodeRecord]
    nodes: tuple[fx.Node, ...] = field(init=False)
    order: Mapping[fx.Node, int] = field(init=False)
    free: frozenset[fx.Node] = field(init=False)

    def __post_init__(self) -> None:
        nodes = tuple(self.traced.graph.nodes)
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "order", {node: position for position, node in enumerate(nodes)})
        free = free_nodes(self.traced.graph)
        object.__setattr__(self, "free", frozenset(free | batch_values(self.traced.graph, free, self.two)))

    @property
    def input(self) -> fx.Node:
        return self.nodes[0]

    @property
    def output(self) -> fx.Node:
        """The node whose tensor the net gives back."""
        return self.nodes[-1].all_input_nodes[0]

    @cached_property
    def live(self) -> tuple[tuple[fx.Node, ...], ...]:
        """Per position, the nodes defined at or before it and used after it, in the order of their definition."""
        alive: list[fx.Node] = []
        after: list[tuple[fx.Node, ...]] = []
        last = {node: self._last_use(node) for node in self.nodes}
        for position, node in enumerate(self.nodes):
            if node not in self.free:
                alive.append(node)
            alive = [other for other in alive if last[other] > position]
            after.append(tuple(alive))
        return tuple(after)

    def _last_use(self, node: fx.Node) -> int:
        users = [user for user in node.users if not is_kind_query(user) and not is_batch_read(user)]
        return max(map(self.order.__getitem__, users), default=-1)

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """Per position, the share of the net's MACs spent up to and including it."""
        total, spent, shares = sum(record.macs for record in self.two.values()), 0, []
        for node in self.nodes:
            spent += self.two[node].macs
            shares.append(spent / max(total, 1))
        return tuple(shares)

    def share(self, node: fx.Node) -> float:
        """Share of the net's MACs spent when ``node`` is done."""
        return self.shares[self.order[node]]

    @cached_property
    def candidates(self) -> tuple[fx.Node, ...]:
        """Nodes after which their own tensor alone is live, with work before and after them."""
        return tuple(node for node in self.alone if 0 < self.share(node) < 1)

    @cached_property
    def crowded(self) -> tuple[fx.Node, ...]:
        """Nodes with work before and after them after which their tensor and others are live, the fewest that can be.

        For nets of branches: a stage hands on all of them, an exit taps the node's own.
        """
        among = [node for node in self.nodes[1:-1] if self._among(node) and 0 < self.share(node) < 1]
        among = [node for node in among if node not in self.alone]
        fewest = min((len(self.live[self.order[node]]) for node in among), default=0)
        return tuple(node for node in among if len(self.live[self.order[node]]) == fewest)

    @cached_property
    def alone(self) -> tuple[fx.Node, ...]:
        """Nodes after which their own tensor alone is live and fit to be tapped."""
        return tuple(node for node in self.nodes[1:-1] if self._alone(node))

    def _alone(self, node: fx.Node) -> bool:
        return len(self.live[self.order[node]]) == 1 and self._among(node)

    def _among(self, node: fx.Node) -> bool:
        """Whether a cut after ``node`` is possible, and its tensor live there and fit to be tapped."""
        position, record = self.order[node], self.three[node]
        if node not in self.live[position] or node is self.output or obstacle(self, position) is not None:
            return False
        return record.dtype is not None and record.dtype.is_floating_point and len(record.shape or ()) in TAP_RANKS

    def macs(self, nodes: Sequence[fx.Node]) -> int:
        """MACs per sample of these nodes together."""
        return sum(self.two[node].macs for node in nodes) // BATCHES[0]


def obstacle(flow: Flow, position: int) -> str | None:
    """Why nothing can be cut after this position, in words that name the node; ``None`` when it can."""
    for node in flow.live[position]:
        two, three = flow.two[node], flow.three[node]
        if not three.is_tensor:
            return _value_obstacle(node, two, three)
        if (two.shape or (0,))[0] != BATCHES[0] or (three.shape or (0,))[0] != BATCHES[1]:
            return (
                f"the tensor of node {node.name!r}{_made_at(node)} goes across it with shape {two.shape} for 2 samples "
                f"and {three.shape} for 3, so its samples are not the batch's; cut before it is made or after its last "
                f"use"
            )
    return None


def _value_obstacle(node: fx.Node, two: NodeRecord, three: NodeRecord) -> str:
    if two.value != three.value:
        return (
            f"the Python value of node {node.name!r}{_made_at(node)} goes across it and follows the batch "
            f"({two.value} for 2 samples, {three.value} for 3), so it is stale once samples have left; read it again "
            f"from a tensor after the cut"
        )
    return (
        f"node {node.name!r}{_made_at(node)} gives something that is neither a tensor nor a size and is used after it; "
        f"cut before it is made or after its last use"
    )


def _made_at(node: fx.Node) -> str:
    return f", {node.meta['line']}," if node.meta.get("line") else ""


def place(
    flow: Flow,
    shares: Sequence[float],
    allowed: Sequence[fx.Node],
    tiers: Mapping[fx.Node, int],
    *,
    reach: float = 1.0,
) -> list[fx.Node]:
    """The allowed node nearest to each wanted share of MACs, ends of blocks preferred; never two at the same share.

    A share without a free node within ``reach`` of it gets none.
    """
    chosen: dict[float, fx.Node] = {}
    for wanted in shares:
        left = [node for node in allowed if flow.share(node) not in chosen and abs(flow.share(node) - wanted) <= reach]
        if left:
            best = min(left, key=lambda node: _miss(flow, node, wanted, tiers))
            chosen[flow.share(best)] = best
    return sorted(chosen.values(), key=flow.order.__getitem__)


def place_default(
    flow: Flow, allowed: Sequence[fx.Node], crowded: Sequence[fx.Node], tiers: Mapping[fx.Node, int]
) -> list[fx.Node]:
    """Up to five cuts at the usual shares; those without a cut point near them are left out.

    Args:
        crowded: where to cut if no allowed node is near any of the shares.

    Raises:
        SplitError: there is no place to cut at all.
    """
    if not allowed and not crowded:
        raise SplitError(_nowhere(flow))
    for nodes in (allowed, crowded):
        near = place(flow, DEFAULT_SHARES, nodes, tiers, reach=REACH)
        if near:
            return near
    return place(flow, DEFAULT_SHARES[-1:], allowed or crowded, tiers)


def _miss(flow: Flow, node: fx.Node, wanted: float, tiers: Mapping[fx.Node, int]) -> tuple[float, int, int]:
    """How far a node is from the wanted share; of equals the later comes first, behind normalization and activation."""
    return abs(flow.share(node) - wanted) + PENALTY[tiers[node]], tiers[node], -flow.order[node]


def _nowhere(flow: Flow) -> str:
    reasons = [obstacle(flow, flow.order[node]) for node in flow.nodes[1:-1] if node is not flow.output]
    reason = next(
        (text for text in reasons if text), "one tensor alone, between two layers with weights, is live nowhere"
    )
    return (
        f"no cut at all: {reason}; name the places (after=[...]) or give the stages by hand (dx.graph.stages_by_hand)"
    )
