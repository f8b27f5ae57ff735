"""Accuracy on many episodes: per exit, under a policy, with intervals over the episodes.

Shapes: n query samples of all episodes, i episodes, e exits, k classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm
from typing_extensions import Unpack

from dynext.brief import short_repr
from dynext.data.episodes import Episode, Episodes
from dynext.errors import FitError, SourceError
from dynext.meta.adapt_config import AdaptOptions, adapt_config, as_start
from dynext.meta.adaptation import learner_for, support_samples
from dynext.meta.start import MetaStart
from dynext.net.collect import table_of
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable, simulate
from dynext.usual_modes import in_usual_modes

NORMAL_95 = 1.96
"""Half the width of a 95 % interval, in standard errors (hundreds of episodes)."""


@dataclass(frozen=True, kw_only=True)
class MeanAccuracy:
    """A mean over episodes, and half the width of its 95 % interval."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.2f} ± {100 * self.half:.2f} %"

    @classmethod
    def of(cls, value_i: Tensor) -> MeanAccuracy:
        """One episode has no interval: its half is infinite."""
        if len(value_i) < 2:
            return cls(mean=float(value_i.mean()), half=math.inf)
        return cls(mean=float(value_i.mean()), half=NORMAL_95 * float(value_i.std()) / math.sqrt(len(value_i)))


@dataclass(frozen=True, kw_only=True, eq=False)
class FewShot:
    """What exits answered on the query samples of many episodes. The table is one like any other: `calibrate` and
    `choose` take it, so that thresholds come from other episodes than those that are reported.
    """

    __repr__ = short_repr

    table: ExitTable
    episode_n: Tensor
    """Which episode each row of the table is of."""

    @property
    def accuracy_e(self) -> tuple[MeanAccuracy, ...]:
        """Of each exit alone."""
        right_ne = self.table.right_ne.double()
        return tuple(self._mean(right_ne[:, e]) for e in range(self.table.num_exits))

    def under(self, policy: Policy) -> tuple[MeanAccuracy, float]:
        """Accuracy where samples leave by ``policy``, and what that costs as a share of the static net's MACs."""
        outcome = simulate(self.table, policy)
        return self._mean(outcome.right_n.double()), outcome.macs / max(self.table.static_macs, 1)

    def _mean(self, right_n: Tensor) -> MeanAccuracy:
        count = torch.bincount(self.episode_n)
        return MeanAccuracy.of(torch.bincount(self.episode_n, right_n) / count)


@in_usual_modes
def evaluate_episodes(
    net: DynamicNet | MetaStart,
    episodes: Episodes | Iterable[Episode],
    *,
    count: int = 600,
    progress: bool = True,
    **options: Unpack[AdaptOptions],
) -> FewShot:
    """Learn each episode's support samples as `adapt` would, and answer its query samples at every exit.

    With ``bn="task"`` query samples are normalized by the support's statistics, as in the net that `adapt` gives;
    papers often take the queries' own, which a net that runs sample by sample cannot.

    Args:
        count: the first so many episodes.
        options: how to learn (``steps``, ``method``, ``lr``, ``classifiers``, ``bn``), as in `adapt`.

    Raises:
        SourceError: no episode, or samples that do not suit the net.
        FitError: episodes of several ways, or arguments out of range.
    """
    if count < 1:
        raise SourceError(f"count={count}; give 1 episode or more")
    start, config = as_start(net), adapt_config(net, options)
    drawn = (episodes[i] for i in range(count)) if isinstance(episodes, Episodes) else iter(episodes)
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    ways: set[int] = set()
    learner = None
    for _, episode in zip(
        tqdm(range(count), desc="episodes", disable=None if progress else True, leave=False), drawn, strict=False
    ):
        x, y = support_samples(start.net, episode.support, kept=config.classifiers == "kept")
        ways.add(episode.way)
        if len(ways) > 1:
            raise FitError(f"episodes of {min(ways)} and of {max(ways)} classes; give one way")
        learner = learner or learner_for(start, config, episode.way)
        like = next(learner.net.parameters())
        support_x = x.to(like)
        changed = learner.learned(support_x, y.to(like.device))
        logits.append(learner.logits(changed, episode.query.x.to(like), support_x).cpu())
        labels.append(_labels(episode))
    if learner is None:
        raise SourceError("there is not one episode; give some")
    sizes = torch.tensor([len(part) for part in labels])
    rows = f"queries of {len(labels)} {ways.pop()}-way episodes"
    table = table_of(learner.net, torch.cat(logits), label_n=torch.cat(labels), rows=rows)
    return FewShot(table=table, episode_n=torch.arange(len(labels)).repeat_interleave(sizes))


def _labels(episode: Episode) -> Tensor:
    if episode.query.y is None:
        raise SourceError("an episode's query samples have no labels; there is nothing to measure accuracy by")
    return episode.query.y.long()
