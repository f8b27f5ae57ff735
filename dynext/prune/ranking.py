"""Rank what a dynamic net could do without, and plan how to meet a budget.

Shapes: c channels.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from torch import Tensor

from dynext.errors import PlanError
from dynext.modules.gates import static_gates
from dynext.net.attach import attach_gates
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.policy import Policy
from dynext.prune.apply import check_prunable, smaller
from dynext.prune.auxiliary import Auxiliary
from dynext.prune.channel_worth import By, Worth, channel_worth, known_layer
from dynext.prune.channels import Channels, Trial, sound
from dynext.prune.mac_accounting import CutCandidate, MacAccounting, predicted
from dynext.prune.plan import Cut, PruningPlan
from dynext.train.controls import rank_stages
from dynext.types import Source
from dynext.usual_modes import in_usual_modes

KEEP = 0.1
"""Share of a group's channels that stays whatever the budget."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What is to be removed from a net; the fields are arguments of `rank`.

    Raises:
        PlanError: a figure out of range, or an unknown way to rank.
    """

    budget: float
    by: By = "magnitude"
    blocks: int = 0
    policy: Policy | None = None

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1 or self.by not in get_args(By) or self.blocks < 0:
            raise PlanError(
                f"budget {self.budget}, by {self.by!r}, blocks {self.blocks}; give a share in (0, 1], one of "
                f"{', '.join(get_args(By))}, and 0 or more"
            )


@in_usual_modes
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
    those worth least first over all groups, where a channel's worth is divided by the mean of its group.

    Args:
        budget: share of the full net's MACs to keep, in (0, 1].
        by: what a channel is worth. ``"magnitude"``: norm of all weights of its group. ``"bn"``: BatchNorm scales
            (network slimming). ``"taylor"``: weight times gradient of how far ``net`` departs from its own answers.
            ``"attention"``: how active it is where the masks distilled in ``auxiliary`` are high, or the later layers'
            own masks where those have been faded out.
        source: samples for ``"taylor"``, ``"attention"`` and ``blocks``; labels are ignored.
        blocks: how many stages to leave out; the net must have been split with ``granularity="block"``.
        rows_per_step: how many samples of the source are used for ``by``, from its first on.

    Raises:
        PlanError: a budget out of range or out of reach, or something missing that ``by`` needs (``"bn"``: BatchNorms
            with scales). SourceError: no samples, or samples of another shape.

    Source: magnitude and Taylor scores of groups are torch-pruning's (DepGraph, Fang et al., CVPR 2023; Molchanov et
    al., CVPR 2019, arXiv:1906.10771); BatchNorm scales are Liu et al., ICCV 2017, arXiv:1708.06519. Attention is ours.
    """
    check_prunable(net)
    removal = Removal(budget=budget, by=by, blocks=blocks, policy=policy)
    _check_ranked_by(removal, source, auxiliary, rows_per_step)
    left_out = () if policy is None else _unused(net, policy)
    small = smaller(net, exits=left_out, blocks=())
    dropped = _least_missed(small, source, blocks) if blocks and source is not None else ()
    small = smaller(small, exits=(), blocks=dropped)
    cuts: tuple[Cut, ...] = ()
    if small.staged.macs > budget * net.staged.macs:
        candidates = _candidates(small, channel_worth(small, by, source, auxiliary, rows_per_step))
        cuts = _sound_cuts(small, candidates, budget * net.staged.macs)
    plan = PruningPlan(cuts=cuts, blocks=dropped, exits=left_out, by=by, macs_before=net.staged.macs)
    macs_e, shapes = predicted(small, cuts)
    return replace(plan, macs_e=macs_e, live_shapes=shapes)


def _check_ranked_by(removal: Removal, source: Source | None, auxiliary: Auxiliary | None, num_samples: int) -> None:
    """Refuse a way to rank without what it needs."""
    if num_samples < 1:
        raise PlanError(f"rows_per_step {num_samples}; give how many samples to rank by, 1 or more")
    if source is None and (removal.by in ("taylor", "attention") or removal.blocks):
        ranked = "blocks" if removal.blocks else removal.by
        raise PlanError(f"{ranked} are ranked by what the net does with samples; give source=")
    if removal.by == "attention" and auxiliary is None:
        raise PlanError(
            "by='attention' ranks by masks that were distilled; give auxiliary= (dx.prune.distill_attention)"
        )


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


def _candidates(net: DynamicNet, worth: Worth) -> list[CutCandidate]:
    """Groups that may lose channels, with what each channel is worth."""
    channels = Channels(net)
    trials: list[Trial] = []
    for layer in channels.roots():
        tried = list(range(0, channels.width(known_layer(channels, layer)), 2))
        if channels.enough(channels.group(layer, tried)):
            trials.append((layer, tried))
    candidates = []
    for layer, removed in sound(net, trials):
        members = channels.members(channels.group(layer, removed))
        coupled = dict.fromkeys(member.layer for member in members if member.side == "out")
        worth_c = worth(channels, layer)
        if len(worth_c) == channels.width(known_layer(channels, layer)):
            candidates.append(CutCandidate(layer, worth_c / worth_c.mean().clamp_min(1e-12), tuple(coupled)))
    return candidates


def _sound_cuts(net: DynamicNet, candidates: Sequence[CutCandidate], allowed_macs: float) -> tuple[Cut, ...]:
    """Cuts that meet ``allowed_macs`` and that `dynext.prune.apply_plan` takes.

    Candidates were tried with every other channel; where a shortcut pads channels, other ones may still be unsound.
    """
    cuts = _cuts_for(net, candidates, allowed_macs)
    sure = {layer for layer, _ in sound(net, [(cut.layer, cut.channels) for cut in cuts])}
    unsound = {cut.layer for cut in cuts} - sure
    if not unsound:
        return cuts
    return _sound_cuts(net, [candidate for candidate in candidates if candidate.layer not in unsound], allowed_macs)


def _cuts_for(net: DynamicNet, candidates: Sequence[CutCandidate], allowed_macs: float) -> tuple[Cut, ...]:
    """The fewest channels, those worth least, whose removal meets ``allowed_macs``."""
    order = sorted(
        (float(worth), index, channel)
        for index, candidate in enumerate(candidates)
        for channel, worth in enumerate(_removable(candidate.worth_c))
        if worth < float("inf")
    )
    accounting = MacAccounting(net, candidates)
    least, whole = accounting.macs(_first_channels(order, len(order))), max(net.staged.macs, 1)
    if least > allowed_macs:
        raise PlanError(
            f"the budget of {allowed_macs / whole:.1%} of the MACs is out of reach: removing all but {KEEP:.0%} of "
            f"every group of channels that may go leaves {least / whole:.1%}"
        )
    enough = bisect_left(
        range(len(order)), True, key=lambda count: accounting.macs(_first_channels(order, count)) <= allowed_macs
    )
    return tuple(
        Cut(
            layer=candidates[index].layer,
            channels=tuple(sorted(channels)),
            of=len(candidates[index].worth_c),
            coupled=candidates[index].coupled,
        )
        for index, channels in sorted(_first_channels(order, enough).items())
    )


def _removable(worth_c: Tensor) -> list[float]:
    """What channels are worth; the best of a group, which always stay, infinitely much."""
    stay = max(1, round(KEEP * len(worth_c)))
    best = set(worth_c.topk(stay).indices.tolist())
    return [float("inf") if c in best else float(worth) for c, worth in enumerate(worth_c)]


def _first_channels(order: Sequence[tuple[float, int, int]], count: int) -> dict[int, list[int]]:
    """The first ``count`` channels in the order of their worth, by their candidate's number."""
    channels: dict[int, list[int]] = {}
    for _, index, channel in order[:count]:
        channels.setdefault(index, []).append(channel)
    return channels
