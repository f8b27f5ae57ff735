"""Accuracy on many episodes: per exit, under a policy, with intervals over the episodes.

Shapes: n query samples of all episodes, i episodes, e exits, k classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from dynext.data.episodes import Episode, Episodes
from dynext.errors import FitError, SourceError
from dynext.meta.adapt_steps import Classifiers, Method, as_start, way_of
from dynext.meta.adaptation import pupil_for, support_rows
from dynext.meta.start import MetaStart
from dynext.net.collect import table_of
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable, simulate

STUDENT = 1.96
"""Half the width of a 95 % interval, in standard errors (hundreds of episodes)."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """A mean over episodes, and half the width of its 95 % interval."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.2f} ± {100 * self.half:.2f} %"

    @classmethod
    def of(cls, value_i: Tensor) -> Share:
        """One episode has no interval: its half is infinite."""
        if len(value_i) < 2:
            return cls(mean=float(value_i.mean()), half=math.inf)
        return cls(mean=float(value_i.mean()), half=STUDENT * float(value_i.std()) / math.sqrt(len(value_i)))


@dataclass(frozen=True, kw_only=True, eq=False)
class FewShot:
    """What exits answered on the query samples of many episodes. The table is one like any other: `calibrate` and
    `choose` take it, so that thresholds come from other episodes than those that are reported.
    """

    table: ExitTable
    episode_n: Tensor
    """Which episode each of the table's samples is of."""

    @property
    def accuracy_e(self) -> tuple[Share, ...]:
        """Of each exit alone."""
        right_ne = self.table.right_ne.double()
        return tuple(self._share(right_ne[:, e]) for e in range(self.table.num_exits))

    def under(self, policy: Policy) -> tuple[Share, float]:
        """Accuracy where samples leave by ``policy``, and what that costs as a share of the static net's MACs."""
        outcome = simulate(self.table, policy)
        return self._share(outcome.right_n.double()), outcome.macs / max(self.table.static_macs, 1)

    def _share(self, right_n: Tensor) -> Share:
        count = torch.bincount(self.episode_n)
        return Share.of(torch.bincount(self.episode_n, right_n) / count)


def evaluate_episodes(
    net: DynamicNet | MetaStart,
    episodes: Episodes | Iterable[Episode],
    *,
    count: int = 600,
    steps: int | None = None,
    method: Method | None = None,
    lr: float | None = None,
    classifiers: Classifiers | None = None,
    bn: Literal["task", "frozen", "per_step"] | None = None,
    progress: bool = True,
) -> FewShot:
    """Learn each episode's support samples as `adapt` would, and answer its query samples at every exit.

    With ``bn="task"`` query samples are normalized by the support's statistics, as in the net that `adapt` gives;
    papers often take the queries' own, which a net that runs sample by sample cannot.

    Args:
        count: the first so many episodes; the others are `adapt`'s.

    Raises:
        SourceError: no episode, or samples that do not suit the net.
        FitError: episodes of several ways, or arguments out of range.
    """
    if count < 1:
        raise SourceError(f"count={count}; give 1 episode or more")
    start = as_start(net)
    way = way_of(start, isinstance(net, MetaStart), method, steps, lr, bn, classifiers)
    drawn = (episodes[i] for i in range(count)) if isinstance(episodes, Episodes) else iter(episodes)
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    ways: set[int] = set()
    pupil = None
    for _, episode in zip(
        tqdm(range(count), desc="episodes", disable=None if progress else True, leave=False), drawn, strict=False
    ):
        x, y = support_rows(start.net, episode.support, kept=way.classifiers == "kept")
        ways.add(episode.way)
        if len(ways) > 1:
            raise FitError(f"episodes of {min(ways)} and of {max(ways)} classes; give one way")
        pupil = pupil or pupil_for(start, way, episode.way)
        like = next(pupil.net.parameters())
        known = x.to(like)
        changed = pupil.learned(known, y.to(like.device))
        logits.append(pupil.answers(changed, episode.query.x.to(like), known).cpu())
        labels.append(_labels(episode))
    if pupil is None:
        raise SourceError("there is not one episode; give some")
    sizes = torch.tensor([len(part) for part in labels])
    rows = f"queries of {len(labels)} {ways.pop()}-way episodes"
    table = table_of(pupil.net, torch.cat(logits), label_n=torch.cat(labels), rows=rows)
    return FewShot(table=table, episode_n=torch.arange(len(labels)).repeat_interleave(sizes))


def _labels(episode: Episode) -> Tensor:
    if episode.query.y is None:
        raise SourceError("an episode's query samples have no labels; there is nothing to judge by")
    return episode.query.y.long()
