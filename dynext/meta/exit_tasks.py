"""A task: which exit, which examples, which parameters it owns, shares and adapts.

Exits as tasks: one episode's samples, one task an exit. Episodes as tasks: new classes, all exits in one task. Their
product: each episode at each exit. All three are lists of `Task`.

Shapes: b samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Generator

from dynext.data.episodes import Episode
from dynext.meta.exit_ownership import Adapts, Claim, Ownership, ownership
from dynext.net.dynamic_net import DynamicNet


class EpisodeSource(Protocol):
    """Where episodes come from: `dynext.data.episodes.Episodes` (new classes), or `SameClasses` (always the same)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def way(self) -> int: ...

    @property
    def about(self) -> str: ...

    def draw(self, draw: Generator) -> Episode: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What is to be learned from the support samples and measured on the query samples, and which parameters may
    change for it.
    """

    claim: Claim
    episode: Episode

    @property
    def exits(self) -> tuple[int, ...]:
        return self.claim.exits


def tasks(
    net: DynamicNet,
    episodes: Sequence[Episode],
    *,
    exits: Sequence[Sequence[int]] | None = None,
    adapts: Adapts = "head",
) -> list[Task]:
    """Every episode at every group of ``exits``: one task an exit without any.

    One episode gives exits as tasks; ``exits=[range(net.num_exits)]`` gives episodes as tasks; else their product.
    An exit that stands in no group is held out: no task touches what it alone owns.
    """
    claims = ownership(net, exits, adapts=adapts).claims
    return [Task(claim=claim, episode=episode) for episode in episodes for claim in claims]


def separate(net: DynamicNet, owned: Ownership) -> tuple[Claim, ...]:
    """The claims with those taken apart whose exits adapt nothing in common.

    Their losses add up and share no adapted parameter, so that the inner loops are the same apart, and each may begin
    where its own exit stands.
    """
    claims: list[Claim] = []
    for claim in owned.claims:
        if len(claim.exits) == 1:
            claims.append(claim)
            continue
        alone = ownership(net, [[e] for e in claim.exits], adapts="used").claims
        users = {name: [exit for exit in alone if name in exit.adapts] for name in claim.adapts}
        apart = [replace(exit, adapts=tuple(n for n in claim.adapts if users[n] == [exit])) for exit in alone]
        common = any(len(by) > 1 for by in users.values()) or not all(exit.adapts for exit in apart)
        claims += [claim] if common else apart
    return tuple(claims)
