"""Apply a pruning plan: a smaller dynamic net, with all that a dynamic net can do."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from typing import cast

from torch import nn

from dynext.errors import PlanError, SplitError
from dynext.graph.shrink import measured, record, without
from dynext.modules.exit_parts import HeadSpec
from dynext.modules.exits import Exit, build_exit, exit_macs
from dynext.net.dynamic_net import DynamicNet
from dynext.net.given_heads import Place, made_head
from dynext.prune.channels import Channels, bake
from dynext.prune.cutting import inconsistency, remove_
from dynext.prune.plan import Cut, PruningPlan
from dynext.seeding import seeded
from dynext.usual_modes import in_usual_modes


@in_usual_modes
def apply_plan(net: DynamicNet, plan: PruningPlan) -> DynamicNet:
    """A copy of ``net`` without what ``plan`` names; weights that stay are not changed.

    It is saved, loaded, run, collected and exported like any other, and needs fine-tuning (`dynext.prune.finetune`).

    Raises:
        PlanError: names or sizes that are not this net's, a cut that would leave a live tensor inconsistent (the
            message names it), or a net that cannot be pruned (`check_prunable`).
    """
    check_prunable(net)
    small = smaller(net, exits=plan.exits, blocks=plan.blocks)
    before = copy.deepcopy(small)
    if plan.cuts:
        channels = Channels(small)
        _check_cuts(small, channels, plan.cuts)
        remove_(small, channels, [(cut.layer, cut.channels) for cut in plan.cuts])
        wanted = {name: p.requires_grad for name, p in before.named_parameters(remove_duplicate=False)}
        for name, parameter in small.named_parameters(remove_duplicate=False):
            parameter.requires_grad_(wanted[name])  # cutting makes new parameters, all with gradients
    return _settled(small, before, plan)


def check_prunable(net: DynamicNet) -> None:
    """Refuse nets that cannot be pruned.

    Raises:
        PlanError: gates, a cascade, 8 bits, or classifiers that answer by cosines.
    """
    obstacles = {
        "has gates": net.gates is not None,
        "is a cascade": net.cascade is not None,
        "is in 8 bits": net.int8 is not None,
        "answers by cosines": net.staged.cosine or any(_cosine(exit.spec) for exit in net.exits),
    }
    present = [obstacle for obstacle, holds in obstacles.items() if holds]
    if present:
        raise PlanError(f"this net {present[0]}; prune the net without, and do that afterwards")


def _cosine(spec: HeadSpec) -> bool:
    return spec.get("answer") == "cosine" or ("inner" in spec and _cosine(spec["inner"]))


def smaller(net: DynamicNet, *, exits: Sequence[str], blocks: Sequence[str]) -> DynamicNet:
    """A copy without some exits and blocks; an exit after a block that is removed moves to the stage before it."""
    names = [exit.name for exit in net.exits]
    wrong = [name for name in exits if name not in names]
    if wrong:
        raise PlanError(f"no exit {wrong[0]!r} to leave out; exits: {', '.join(names) or 'none'}")
    small = copy.deepcopy(net)
    small.cost = None
    kept = [exit for exit in small.exits if exit.name not in exits]
    try:
        staged = without(small.staged, blocks)
    except SplitError as error:
        raise PlanError(str(error)) from error
    staged.shrunk = record(staged, dropped=blocks, before=net.staged) if blocks else net.staged.shrunk
    small.staged = staged
    old = [stage.name for stage in net.staged.stages]
    left = [name for name in old if name not in blocks]
    for exit in kept:
        stays = [name for name in old[: exit.after + 1] if name in left]
        if not stays:
            raise PlanError(f"no stage is left before the exit after {exit.name!r}; keep {old[0]!r}")
        exit.after, exit.name = left.index(stays[-1]), stays[-1]
    places = [exit.after for exit in kept]
    if len(set(places)) < len(places):
        raise PlanError(f"without {', '.join(blocks)} two exits stand after one stage; leave one of them out as well")
    small.exits = cast("list[Exit]", nn.ModuleList(kept))
    return small


def _check_cuts(net: DynamicNet, channels: Channels, cuts: Sequence[Cut]) -> None:
    for cut in cuts:
        _check_names(channels, cut)
    _check_apart(channels, cuts)
    if inconsistency(net, channels, [(cut.layer, cut.channels) for cut in cuts]) is None:
        return
    for cut in cuts:  # find the one to name
        why = inconsistency(net, channels, [(cut.layer, cut.channels)])
        if why is not None:
            raise PlanError(
                f"{len(cut.channels)} of {cut.of} channels of {cut.layer} cannot go: they are part of the live tensor "
                f"after {_stage_of(net, cut)!r}, and {why}"
            )
    raise PlanError(f"each cut may be made, but not all {len(cuts)} together; make the plan anew (dx.prune.rank)")


def _check_names(channels: Channels, cut: Cut) -> None:
    module = channels.layer(cut.layer)
    graph = channels.graph
    if module is None or module not in graph.module2node or graph.get_pruner_of_module(module) is None:
        raise PlanError(
            f"{cut.layer!r} is no layer of this net with channels to cut; make the plan anew (dx.prune.rank)"
        )
    if channels.width(module) != cut.of:
        raise PlanError(f"{cut.layer} has {channels.width(module)} channels, the plan says {cut.of}; make it anew")
    group = channels.group(cut.layer, cut.channels)
    coupled = set(channels.coupled(cut.layer, cut.channels))
    if cut.coupled and set(cut.coupled) != coupled:
        raise PlanError(
            f"{cut.layer} is coupled with {', '.join(sorted(coupled))}, the plan says {', '.join(cut.coupled)}; "
            f"it was made for another net"
        )
    held = channels.held(group)
    if held:
        raise PlanError(f"{len(cut.channels)} of {cut.of} channels of {cut.layer} cannot go: {bake(held)}")
    if not channels.enough(group):
        raise PlanError(f"with {cut.layer} a layer that is coupled with it would keep no channel; cut fewer")


def _stage_of(net: DynamicNet, cut: Cut) -> str:
    """The name of the stage that the layer is in; a head's layer counts as the last one's."""
    stage = int(cut.layer.split(".")[2]) if cut.layer.startswith("staged.stages.") else len(net.staged.stages) - 1
    return net.staged.stages[stage].name


def _check_apart(channels: Channels, cuts: Sequence[Cut]) -> None:
    """Two cuts may not decide over the same channels: one of them would not say all that goes."""
    owners: dict[tuple[str, int], Cut] = {}
    for cut in cuts:
        for place in sorted(channels.owned(cut.layer, cut.channels)):
            other = owners.setdefault(place, cut)
            if other is not cut:
                raise PlanError(
                    f"{cut.layer} and {other.layer} both cut the output of {place[0]}; a plan names one of the "
                    f"layers that are coupled, with all channels that go"
                )


def _settled(small: DynamicNet, before: DynamicNet, plan: PruningPlan) -> DynamicNet:
    """The net with shapes, MACs and heads' JSON measured anew, if these are what was planned."""
    shrunk = record(small.staged, dropped=(), before=before.staged) if plan.cuts else small.staged.shrunk
    try:
        staged = measured(small.staged, shrunk)
        stages = [staged.stages[exit.after] for exit in small.exits]
        taps = [tuple(stage.live_shapes[stage.tap]) for stage in stages]
        exits = [_fitted(exit, tap) for exit, tap in zip(small.exits, taps, strict=True)]
    except (SplitError, RuntimeError) as error:
        raise PlanError(f"what the plan leaves is inconsistent: {error}") from error
    pruned = DynamicNet(staged, exits).eval()
    pruned.seen = before.seen
    pruned.spec = small.spec
    shapes = tuple(tuple(tuple(s) for s in stage.live_shapes) for stage in staged.stages)
    macs_e = tuple(a + b for a, b in zip(pruned.trunk_macs_e, pruned.head_macs_e, strict=True))
    if plan.macs_e and (plan.macs_e, plan.live_shapes) != (macs_e, shapes):
        raise PlanError(f"the plan leaves {macs_e} MACs, it says {plan.macs_e}; it was made for another net")
    return pruned


def _fitted(exit: Exit, tap: tuple[int, ...]) -> Exit:
    """The exit with JSON that builds it at the size it now has."""
    if exit.own is not None:
        return _own_fitted(exit, tap)
    with seeded(0):
        rebuilt = build_exit(_respecified(exit.spec, tap), after=exit.after, name=exit.name)
    rebuilt.load_state_dict(exit.state_dict())
    like = next(exit.parameters())
    rebuilt = rebuilt.to(like)
    for parameter, old in zip(rebuilt.parameters(), exit.parameters(), strict=True):
        parameter.requires_grad_(old.requires_grad)
    rebuilt.macs = exit_macs(rebuilt.eval(), like.new_zeros(2, *tap))
    return rebuilt


def _own_fitted(exit: Exit, tap: tuple[int, ...]) -> Exit:
    """A head of one's own as it is left; its factory gives what it is built from again for the tap that it now has."""
    kept, own, old = copy.deepcopy(exit).eval(), exit.own, exit.spec
    like = next(iter([*kept.parameters(), *kept.buffers()]))
    if own is not None and own.factory is not None and tap != tuple(old["tap"]):
        place = Place(exit.name, tap, old["classes_made"], old["most_macs"], like.new_zeros(0))
        with suppress(SplitError), seeded(0):
            kept.own = made_head(own.factory, place).own
    kept.spec = _respecified(old, tap)
    kept.macs = exit_macs(kept, like.new_zeros(2, *tap))
    return kept


def _respecified(spec: HeadSpec, tap: tuple[int, ...]) -> HeadSpec:
    inner = {"inner": _respecified(spec["inner"], tap)} if "inner" in spec else {}
    return {**spec, "tap": list(tap), **inner}
