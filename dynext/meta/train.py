"""Meta-training: parameters from which each exit is learned in a few steps.

Shapes: t episodes a step, b samples.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Literal, get_args

import torch
from torch import Generator, Tensor, nn
from typing_extensions import Unpack

from dynext import plugins
from dynext.errors import FitError, SourceError
from dynext.fitting import FitConfig, FitOptions, configured, fit
from dynext.meta.engines import Engine
from dynext.meta.exit_ownership import Ownership, ownership
from dynext.meta.exit_tasks import EpisodeSource, separate
from dynext.meta.functional import Learner
from dynext.meta.inner import InnerLoop
from dynext.meta.loss import MetaLoss
from dynext.meta.norms import settle
from dynext.meta.start import MetaStart
from dynext.meta.vmap import vectorized
from dynext.net.dynamic_net import DynamicNet
from dynext.seeding import generator
from dynext.train.exit_loop import handed_back
from dynext.types import Batch
from dynext.usual_modes import in_usual_modes

Trunk = Literal["learned", "frozen"]

USUAL = FitConfig()

SETTLED = 8
"""Episodes whose samples the running statistics are taken from in the end."""


@in_usual_modes
def meta_train(
    net: DynamicNet,
    episodes: EpisodeSource,
    config: FitConfig | None = None,
    *,
    inner: InnerLoop | None = None,
    exits: Sequence[Sequence[int]] | None = None,
    batch: int = 4,
    trunk: Trunk = "learned",
    engine: str | Engine = "dynext",
    **options: Unpack[FitOptions],
) -> MetaStart:
    """A copy of ``net`` whose exits are each learned from a few samples in a few steps.

    A step draws ``batch`` episodes; each is a task at each exit. The trunk is run once for an episode where the inner
    loop leaves it alone (the default), and learns from the outer gradient. With ``bn="task"`` the running statistics
    are in the end set to those of some episodes' support samples, so that the net can be used like any other.

    Args:
        config: how to train, as a whole or field by field (``steps=600, seed=1``). An episode says itself how many
            samples it has, and the trunk learns at the rate of all.
        inner: how a task is learned; `InnerLoop`'s defaults (heads alone, second order) without it.
        exits: the exits of each task; one task an exit without it. Exits in none are held out: no parameter that they
            alone own moves (BatchNorms' running statistics follow the samples at every exit). Where tasks adapt the
            trunk too (``adapts="used"``), give all in one, ``[range(net.num_exits)]``, for a start that `adapt` is to
            take: it has one net to adapt, with one trunk.
        trunk: ``"frozen"`` trains what tasks adapt and nothing else.
        batch: episodes of a step.
        engine: ``"higher"`` and ``"learn2learn"`` run the same tasks through those libraries, ``"vmap"`` runs all
            episodes of a step at once, where that is exact. A function ``(problem, inner) -> loss`` does as one's own
            (`dynext.meta.engines.Engine`).

    Raises:
        FitError: episodes of another way than the net has classes, a cascade, what an engine cannot do, or an option
            that means nothing here (``batch_size``, ``trunk_lr``).
        SourceError: samples of another shape than the model expects.

    Source: MAML and its relatives, see `InnerLoop.of`; exits as tasks: Meta-GF, Sun et al., ECCV 2022, which fuses
    exits instead (`meta_fusion`).
    """
    config, inner = configured(USUAL, config, options), inner or InnerLoop()
    _check_options(options)
    owned = checked(net, episodes, inner, exits, batch, trunk)
    student = copy.deepcopy(net).requires_grad_(True)
    loss = MetaLoss(student, separate(student, owned), inner, engine=engine)
    if trunk == "frozen":
        _freeze_unadapted(student, owned)
    module = _Steps(loss, vmap=engine == "vmap")

    def step(trained: nn.Module, draw: Generator, done: float) -> Tensor:
        drawn = [episodes.draw(draw) for _ in range(batch)]
        like = next(student.parameters())
        columns = [[e.support for e in drawn], [e.query for e in drawn]]
        return trained(*(tensor for column in columns for tensor in _stacked(column, like)))

    identity = {
        "inner": asdict(inner), "exits": [claim.exits for claim in owned.claims], "batch": batch, "trunk": trunk,
        "way": episodes.way, "episodes": episodes.about,
    }  # fmt: skip
    if callable(engine):
        identity["engine"] = plugins.identity(engine)
    fit(module.train(), step, replace(config, label="meta-training", about=str(identity)), modes="given")
    statistics = None
    if inner.bn == "task":
        _settle_on_episodes(student, episodes, config.seed)
    elif loss.statistics is not None:
        gathered = loss.statistics
        statistics = {
            name: torch.stack([gathered.at(step)[name].cpu() for step in range(inner.steps + 1)])
            for name in gathered.names
        }
        _copy_into_buffers(student, gathered.at(inner.steps))
    return MetaStart(
        net=handed_back(student, net).eval(), inner=inner, step_sizes=loss.step_sizes(), statistics=statistics
    )


def _check_options(options: FitOptions) -> None:
    """Refuse what would be passed over."""
    unused = [name for name in ("batch_size", "trunk_lr") if name in options]
    if unused:
        raise FitError(f"{unused[0]} means nothing to meta_train; give batch= (episodes of a step), or trunk='frozen'")


class _Steps(nn.Module):
    """Several episodes ``[t b ...]`` to the mean of their losses."""

    def __init__(self, loss: MetaLoss, *, vmap: bool) -> None:
        super().__init__()
        self.loss = loss
        self.at_once = vectorized(loss) if vmap else None

    def forward(self, *columns: Tensor) -> Tensor:
        if self.at_once is not None:
            return self.at_once(*columns).mean()
        return torch.stack([self.loss(*episode) for episode in zip(*columns, strict=True)]).mean()


def checked(
    net: DynamicNet,
    episodes: EpisodeSource,
    inner: InnerLoop,
    exits: Sequence[Sequence[int]] | None,
    batch: int,
    trunk: str,
) -> Ownership:
    """Who owns what, if the episodes suit the net."""
    if tuple(episodes.shape) != net.staged.input_shape:
        raise SourceError(f"samples of shape {tuple(episodes.shape)}; the model expects {net.staged.input_shape}")
    if batch < 1:
        raise FitError(f"batch={batch}; a step takes 1 episode or more")
    if trunk not in get_args(Trunk):
        raise FitError(f"trunk={trunk!r}; give 'learned' or 'frozen'")
    if trunk == "frozen" and inner.bn != "frozen":
        raise FitError(f"a frozen trunk keeps its statistics, and bn={inner.bn!r} gives it others; give bn='frozen'")
    if inner.rule != "prototypes" and episodes.way != net.num_classes:
        raise FitError(
            f"{episodes.way}-way episodes for a net of {net.num_classes} classes; make it one of {episodes.way} "
            f"(dx.meta.with_classes), or draw {net.num_classes}-way episodes"
        )
    return ownership(net, exits, adapts=inner.adapts)


def _freeze_unadapted(net: DynamicNet, owned: Ownership) -> None:
    adapted = {name for claim in owned.claims for name in claim.adapts}
    for name, p in net.named_parameters():
        p.requires_grad_(name in adapted)


def _stacked(batches: Sequence[Batch], like: Tensor) -> tuple[Tensor, Tensor]:
    """Samples ``[t b ...]`` and labels ``[t b]`` where the training runs."""
    sizes = {tuple(batch.x.shape) for batch in batches}
    if len(sizes) > 1:
        raise FitError(f"episodes of {min(sizes)} and of {max(sizes)} in one step; give some of one size, or batch=1")
    labels = [batch.y for batch in batches if batch.y is not None]
    return torch.stack([batch.x for batch in batches]).to(like), torch.stack(labels).to(like.device)


def _settle_on_episodes(net: DynamicNet, episodes: EpisodeSource, seed: int) -> None:
    like = next(net.parameters())
    draw = generator(seed + 1)
    x = torch.cat([episodes.draw(draw).support.x for _ in range(SETTLED)])
    settle(Learner(net, range(net.num_exits)), x.to(like))


@torch.no_grad()
def _copy_into_buffers(net: DynamicNet, buffers: dict[str, Tensor]) -> None:
    own = dict(net.named_buffers())
    for name, tensor in buffers.items():
        own[name].copy_(tensor)
