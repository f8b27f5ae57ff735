"""Rank what a dynamic net could do without, and plan how to meet a budget.

Shapes: b samples, c channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dynext.data.indexing import check_samples
from dynext.errors import PlanError
from dynext.modules.gates import static_gates
from dynext.modules.modes import evaluating, statistics
from dynext.net.attach import attach_gates
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.policy import Policy
from dynext.prune.apply import check_prunable, smaller
from dynext.prune.attention_maps import align, as_map, attention_map, of_reduced
from dynext.prune.auxiliary import Auxiliary
from dynext.prune.channels import Channels, Trial, sound
from dynext.prune.mac_accounting import Books, Candidate, predicted
from dynext.prune.plan import Cut, PruningPlan
from dynext.train.controls import rank_stages
from dynext.types import Source

By = Literal["magnitude", "bn", "taylor", "attention"]

KEEP = 0.1
"""Share of a group's channels that stays whatever the budget."""


def rank(
    net: DynamicNet,
    *,
    budget: float,
    by: By = "magnitude",
    source: Source | None = None,
    auxiliary: Auxiliary | None = None,
    blocks: int = 0,
    policy: Policy | None = None,
    rows_per_step: int = 64,
) -> PruningPlan:
    """Plan what to remove so that the full net spends at most ``budget`` of its MACs; ``net`` is not changed.

    Exits that ``policy`` never uses go first, then ``blocks`` residual blocks (the least missed ones), then channels,
    those worth least first over all groups, a group's worth divided by its mean.

    Args:
        budget: share of the full net's MACs to keep, in (0, 1].
        by: what a channel is worth. ``"magnitude"``: norm of all weights of its group. ``"bn"``: BatchNorm scales
            (network slimming). ``"taylor"``: weight times gradient of how unlike its own answers ``net`` becomes.
            ``"attention"``: how active it is where ``auxiliary``'s distilled masks look, or the later layers' own where
            those have been faded out.
        source: samples for ``"taylor"``, ``"attention"`` and ``blocks``; labels are not looked at.
        blocks: how many stages to leave out; the net must have been split with ``granularity="block"``.
        rows_per_step: how many samples of the source are looked at, from its first on.

    Raises:
        PlanError: a budget out of range or out of reach, or something missing that ``by`` needs (``"bn"``: BatchNorms
            with scales). SourceError: no samples, or samples of another shape.

    Source: magnitude and Taylor scores of groups are torch-pruning's (DepGraph, Fang et al., CVPR 2023; Molchanov et
    al., CVPR 2019, arXiv:1906.10771); BatchNorm scales are Liu et al., ICCV 2017, arXiv:1708.06519. Attention is ours.
    """
    check_prunable(net)
    _check(budget, by, source, auxiliary, blocks, rows_per_step)
    left_out = () if policy is None else _unused(net, policy)
    small = smaller(net, exits=left_out, blocks=())
    dropped = _least_missed(small, source, blocks) if blocks and source is not None else ()
    small = smaller(small, exits=(), blocks=dropped)
    cuts: tuple[Cut, ...] = ()
    if small.staged.macs > budget * net.staged.macs:
        candidates = _candidates(small, _worth(small, by, source, auxiliary, rows_per_step))
        cuts = _sound_cuts(small, candidates, budget * net.staged.macs)
    plan = PruningPlan(cuts=cuts, blocks=dropped, exits=left_out, by=by, macs_before=net.staged.macs)
    macs_e, shapes = predicted(small, cuts)
    return PruningPlan(**{**vars(plan), "macs_e": macs_e, "live_shapes": shapes})


def _check(budget: float, by: str, source: Source | None, auxiliary: Auxiliary | None, blocks: int, count: int) -> None:
    if not 0 < budget <= 1 or by not in get_args(By) or blocks < 0 or count < 1:
        raise PlanError(
            f"budget {budget}, by {by!r}, blocks {blocks}, rows_per_step {count}; give a share in (0, 1], one of "
            f"{', '.join(get_args(By))}, 0 or more, and 1 or more"
        )
    if source is None and (by in ("taylor", "attention") or blocks):
        raise PlanError(f"{'blocks' if blocks else by} are ranked by what the net does with samples; give source=")
    if by == "attention" and auxiliary is None:
        raise PlanError("by='attention' looks where distilled masks look; give auxiliary= (dx.prune.distill_attention)")


def _unused(net: DynamicNet, policy: Policy) -> tuple[str, ...]:
    policy.check_exits(net.num_exits)
    early = zip(net.exits, policy.threshold_e, strict=False)  # the last threshold is the full net's
    return tuple(exit.name for exit, threshold in early if threshold is None)


def _least_missed(net: DynamicNet, source: Source, blocks: int) -> tuple[str, ...]:
    skippable = net.staged.skippable
    if blocks > len(skippable):
        raise PlanError(
            f"{blocks} blocks to leave out, but samples may skip {len(skippable)} of this net's stages; leave out "
            f"fewer, or split with granularity='block', which makes each residual block a stage"
        )
    ranking = rank_stages(attach_gates(net, static_gates([1.0] * len(skippable))), source)
    return tuple(net.staged.stages[skippable[g]].name for g in ranking.order[:blocks])


Worth = Callable[[Channels, str], Tensor]
"""What each output channel of a root layer is worth ``[c]``, its group with it."""


def _worth(net: DynamicNet, by: str, source: Source | None, auxiliary: Auxiliary | None, count: int) -> Worth:
    import torch_pruning

    if by == "attention":
        assert source is not None  # noqa: S101
        assert auxiliary is not None  # noqa: S101
        return _by_attention(net, source, auxiliary, count)
    if by == "bn" and not any(isinstance(m, _BatchNorm) and m.affine for m in net.staged.modules()):
        raise PlanError("by='bn' ranks by BatchNorms' scales, and this net has none; give by='magnitude' or 'taylor'")
    kinds = {
        "magnitude": torch_pruning.importance.GroupMagnitudeImportance,
        "bn": torch_pruning.importance.BNScaleImportance,
        "taylor": torch_pruning.importance.GroupTaylorImportance,
    }
    importance: Any = kinds[by]()

    def worth(channels: Channels, layer: str) -> Tensor:
        width = channels.width(_known(channels, layer))
        found = importance(channels.group(layer, range(width)))
        # a group that is zero all over is divided by a mean of zero, and is worth nothing
        return torch.ones(width) if found is None else found.detach().cpu().nan_to_num(nan=0.0)

    if by == "taylor":
        assert source is not None  # noqa: S101
        _slope(net, source, count)
    return worth


def _slope(net: DynamicNet, source: Source, count: int) -> None:
    """Leave on every parameter the gradient of the exits' cross-entropy with the full net's answers."""
    x = _first(net, source, count)
    net.requires_grad_(True)
    with evaluating(net), statistics(net.staged, source.bn), torch.enable_grad():
        logits_bek = net.all_exits(x)
        target_b = logits_bek[:, -1].detach().argmax(-1)
        losses = [F.cross_entropy(logits, target_b) for logits in logits_bek.unbind(1)]
        torch.stack(losses).sum().backward()


def _first(net: DynamicNet, source: Source, count: int) -> Tensor:
    """The source's first samples ``[b ...]``, of the net's kind."""
    check_samples(source, net.staged.input_shape)
    batch = next(iter(source))
    return batch.x[:count].to(next(net.parameters()))


@torch.no_grad()
def _by_attention(net: DynamicNet, source: Source, auxiliary: Auxiliary, count: int) -> Worth:
    """Mean activity of a layer's channels, weighed by where the mask of the next exit looks."""
    x = _first(net, source, count)
    look_of = _looks(net, auxiliary, x)
    outputs: dict[str, Tensor] = {}
    channels = Channels(net)
    with evaluating(net), statistics(net.staged, source.bn), ExitStack() as open_hooks:
        for name in channels.roots():
            handle = _known(channels, name).register_forward_hook(
                lambda _, __, out, name=name: outputs.update({name: out.detach()})
            )
            open_hooks.callback(handle.remove)
        net.all_exits(x)

    def worth(_: Channels, layer: str) -> Tensor:
        feature_bchw = as_map(outputs[layer])
        look_b1hw = align(look_of(layer), (feature_bchw.shape[2], feature_bchw.shape[3]))
        return (feature_bchw.abs() * look_b1hw).mean((0, 2, 3)).cpu()

    return worth


def _looks(net: DynamicNet, auxiliary: Auxiliary, x: Tensor) -> Callable[[str], Tensor]:
    """For a layer, where the first exit behind it looks ``[b 1 h w]``; behind the last exit, where that one does."""
    names = [stage.name for stage in auxiliary.net.staged.stages]
    strange = [stage.name for stage in net.staged.stages if stage.name not in names]
    if strange:
        raise PlanError(f"auxiliary= was made of another net: it has no stage {strange[0]!r}; lend this one attention")
    # by name: with blocks left out, stages of the two nets have other numbers
    number = [names.index(stage.name) for stage in net.staged.stages]
    places = [int(exit.after) for exit in auxiliary.net.exits]
    masks = [path.own if auxiliary.strength == 1 else path.lent for path in auxiliary.look(x)]
    maps = [attention_map(of_reduced(mask))[:, None] for mask in masks]

    def look_of(layer: str) -> Tensor:
        stage = number[int(layer.split(".")[2])]
        return maps[next((e for e, after in enumerate(places) if after >= stage), len(maps) - 1)]

    return look_of


def _candidates(net: DynamicNet, worth: Worth) -> list[Candidate]:
    """Groups that may lose channels, with what each is worth."""
    channels = Channels(net)
    trials: list[Trial] = []
    for layer in channels.roots():
        tried = list(range(0, channels.width(_known(channels, layer)), 2))
        if channels.enough(channels.group(layer, tried)):
            trials.append((layer, tried))
    found = []
    for layer, sure in sound(net, trials):
        parts = channels.parts(channels.group(layer, sure))
        coupled = dict.fromkeys(part.layer for part in parts if part.side == "out")
        worth_c = worth(channels, layer)
        if len(worth_c) == channels.width(_known(channels, layer)):
            found.append(Candidate(layer, worth_c / worth_c.mean().clamp_min(1e-12), tuple(coupled)))
    return found


def _known(channels: Channels, layer: str) -> nn.Module:
    module = channels.layer(layer)
    assert module is not None  # noqa: S101  `Channels.roots` names layers that are there
    return module


def _sound_cuts(net: DynamicNet, candidates: Sequence[Candidate], wanted: float) -> tuple[Cut, ...]:
    """Cuts that meet ``wanted`` MACs and that `dynext.prune.apply_plan` takes.

    Candidates were tried with every other channel; where a shortcut pads channels, others may still be unsound.
    """
    cuts = _cuts_for(net, candidates, wanted)
    sure = {layer for layer, _ in sound(net, [(cut.layer, cut.channels) for cut in cuts])}
    unsound = {cut.layer for cut in cuts} - sure
    return _sound_cuts(net, [one for one in candidates if one.layer not in unsound], wanted) if unsound else cuts


def _cuts_for(net: DynamicNet, candidates: Sequence[Candidate], wanted: float) -> tuple[Cut, ...]:
    """The fewest of the least worthy channels whose removal meets ``wanted`` MACs."""
    order = sorted(
        (float(worth), index, channel)
        for index, candidate in enumerate(candidates)
        for channel, worth in enumerate(_spare(candidate.worth_c))
        if worth < float("inf")
    )
    books = Books(net, candidates)
    few, many = 0, len(order)
    least, whole = books.macs(_taken(order, many)), max(net.staged.macs, 1)
    if least > wanted:
        raise PlanError(
            f"the budget of {wanted / whole:.1%} of the MACs is out of reach: removing all but {KEEP:.0%} of every "
            f"group of channels that may go leaves {least / whole:.1%}"
        )
    while few < many:
        middle = (few + many) // 2
        few, many = (few, middle) if books.macs(_taken(order, middle)) <= wanted else (middle + 1, many)
    taken = _taken(order, few)
    return tuple(
        Cut(
            layer=candidates[index].layer,
            channels=tuple(sorted(channels)),
            of=len(candidates[index].worth_c),
            coupled=candidates[index].coupled,
        )
        for index, channels in sorted(taken.items())
    )


def _spare(worth_c: Tensor) -> list[float]:
    """What channels are worth; the best of a group, which always stay, infinitely much."""
    stay = max(1, round(KEEP * len(worth_c)))
    best = set(worth_c.topk(stay).indices.tolist())
    return [float("inf") if c in best else float(worth) for c, worth in enumerate(worth_c)]


def _taken(order: Sequence[tuple[float, int, int]], count: int) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for _, index, channel in order[:count]:
        found.setdefault(index, []).append(channel)
    return found
