"""Rank what a dynamic net could do without, and plan how to meet a budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

from dynext.data.given import takes_data
from dynext.errors import PlanError
from dynext.modules.gates import static_gates
from dynext.net.attach import attach_gates
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.policy import Policy
from dynext.prune.apply import apply_plan, check_prunable, smaller
from dynext.prune.auxiliary import Auxiliary
from dynext.prune.channel_choice import ChannelChoice
from dynext.prune.channel_worth import By, channel_worth
from dynext.prune.plan import PruningPlan
from dynext.train.controls import rank_stages
from dynext.types import Data, Source
from dynext.usual_modes import in_usual_modes

ATTEMPTS = 5
"""How often more channels are taken where a plan leaves more MACs than was predicted."""


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
@takes_data(unlabelled=("source",))
def rank(
    net: DynamicNet,
    *,
    budget: float,
    by: By = "magnitude",
    source: Data | None = None,
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
    plan = PruningPlan(blocks=dropped, exits=left_out, by=by, macs_before=net.staged.macs)
    if small.staged.macs <= budget * net.staged.macs:
        return _measured(net, plan)
    worth = channel_worth(small, by, source, auxiliary, rows_per_step)
    return _within(net, plan, ChannelChoice(small, worth), budget * net.staged.macs)


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


def _within(net: DynamicNet, plan: PruningPlan, choice: ChannelChoice, allowed_macs: float) -> PruningPlan:
    """The plan with channels too, so that what is left spends ``allowed_macs`` at most, as counted on it.

    MACs are predicted by layer, which is exact for layers whose MACs go with their channels; where others are among
    them, more channels go.
    """
    aim = allowed_macs
    for _ in range(ATTEMPTS):
        whole = _measured(net, replace(plan, cuts=choice.cuts(aim)))
        if whole.macs <= allowed_macs:
            return whole
        aim *= allowed_macs / whole.macs
    raise PlanError(
        f"the budget of {allowed_macs / plan.macs_before:.1%} of the MACs is out of reach: channels that were to leave "
        f"that leave {whole.macs / plan.macs_before:.1%}; give a larger one"
    )


def _measured(net: DynamicNet, plan: PruningPlan) -> PruningPlan:
    """The plan with the MACs and live shapes that it leaves, counted on the net that `apply_plan` makes of it."""
    small = apply_plan(net, plan)
    macs_e = tuple(trunk + head for trunk, head in zip(small.trunk_macs_e, small.head_macs_e, strict=True))
    shapes = tuple(tuple(tuple(shape) for shape in stage.live_shapes) for stage in small.staged.stages)
    return replace(plan, macs_e=macs_e, live_shapes=shapes)
