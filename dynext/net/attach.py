"""Puts exits behind stages and gates before them, from fresh heads or from their JSON."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import nn

from dynext.errors import SplitError
from dynext.graph import Stage, StagedNet
from dynext.graph.macs import count_macs
from dynext.modules.exits import Exit, HeadSpec, build_exit, exit_macs
from dynext.modules.gates import EachItsOwn, Gates, GateSpec, build_gates
from dynext.modules.own_parts import OwnPart, own_macs
from dynext.net.dynamic_net import DynamicNet
from dynext.net.given_gates import GatesGiven, made_gates
from dynext.net.given_heads import HeadsGiven, Place, made_heads
from dynext.seeding import seeded
from dynext.usual_modes import in_usual_modes


class OwnParts(TypedDict):
    """The modules behind specs of kind ``"own"``, in the order of the exits."""

    own_e: Sequence[OwnPart | None] | None
    own_gates: OwnPart | None


SHARE = 1 / 8
"""Of the MACs that leaving at an exit saves: what a head may cost that scales with it."""


@in_usual_modes
def attach(staged: StagedNet, heads: HeadsGiven, *, at: Sequence[int | str] | None = None, seed: int = 0) -> DynamicNet:
    """Put an untrained exit after every stage but the last, or after those named in ``at``.

    The stages are copied, and so are modules: training the dynamic net never changes what was given. Heads are
    initialized from ``seed``. The net is in evaluation.

    Args:
        heads: what makes a head for a tap of a given shape (of one sample, a tuple): heads of ours (`default_heads`,
            `dynext.heads`), or **any callable or class that gives an nn.Module**, tap ``[b ...]`` to logits ``[b k]``.
            It may also ask for ``num_classes`` and ``most_macs`` (an eighth of what leaving there saves). Or a module
            for each exit: a list, or a dict by stage names or numbers, whose keys say
            where; a single one for a single exit. Or a name: ``"pooled"``, one that a package registers (entry points
            ``dynext.heads``), ``"package.module:name"``.
        at: stage numbers from 0, or stage names.

    A module of your own is tried out, and its MACs are counted; if torch counts none, each of its parameters counts
    once, with a warning. Its last ``nn.Linear`` becomes the exit's ``classifier`` and the rest its ``embedder``, if the
    logits are what that layer gives; a module that ends otherwise works all the same, without an embedding.

    Raises:
        SplitError: no such stage, or a head that cannot sit there: the message says what to write.
    """
    staged = copy.deepcopy(staged)
    if isinstance(heads, Mapping | nn.ModuleDict) and "kind" not in heads:
        by_name: dict[Any, Any] = {_stage_name(staged, key): head for key, head in heads.items()}
        heads, at = by_name, list(by_name) if at is None else at
    places = _exit_places(staged, at)
    with seeded(seed):
        made = made_heads(heads, [_place(staged, s) for s in places])
        net = from_specs(staged, [head.spec for head in made], places, own_e=[head.own for head in made])
    _warn_of_uncounted(net)
    return net


def _stage_name(staged: StagedNet, key: int | str) -> int | str:
    """The name of a stage that may be given by its number; a wrong one stays, to be told of."""
    return staged.stages[key].name if isinstance(key, int) and 0 <= key < len(staged.stages) else key


def _place(staged: StagedNet, s: int) -> Place:
    stage, left = staged.stages[s], sum(stage.macs for stage in staged.stages[s + 1 :])
    return Place(stage.name, _tap_shape(stage), staged.num_classes, round(SHARE * left), staged.zeros(0))


def _warn_of_uncounted(net: DynamicNet) -> None:
    for exit in net.exits:
        if exit.own is not None and exit.macs and not _counted(exit):
            warnings.warn(
                f"torch counts no MACs of the head after {exit.name} ({exit.spec['module']}); the {exit.macs:,} "
                f"numbers that it holds are counted instead, one each",
                stacklevel=4,
            )


def _counted(exit: Exit) -> int:
    like = next(iter([*exit.parameters(), *exit.buffers()]))
    return count_macs(exit, like.new_zeros(2, *exit.spec["tap"]))


@in_usual_modes
def attach_gates(
    net: DynamicNet | StagedNet, gates: GatesGiven, *, at: Sequence[int | str] | None = None, seed: int = 0
) -> DynamicNet:
    """A copy of ``net`` with untrained gates before every stage that a sample may skip, or before those in ``at``.

    Gates that are there already are replaced. The new ones are initialized from ``seed``.

    Args:
        gates: gates of ours (`feedforward_gates`, `recurrent_gates`, `policy_gates`, `static_gates`, `random_gates`),
            or **any callable or class that gives an nn.Module** for the shape of what goes into a stage: that tensor
            ``[b ...]`` to a logit ``[b]``, above 0 to run the stage. Gates that share something are one module with
            ``begin(x) -> memory`` and ``ask(g, tap, memory) -> (logit_b, memory)``, memory a tuple of tensors
            ``[b ...]``; its class, or a function whose first argument is called ``taps``, is called with the list of
            all shapes. With ``at_once = True`` the memory that ``begin`` gives is the logits ``[b g]``. Or modules, one
            each; or the name of gates that a package registers (entry points ``dynext.gates``).
        at: stage numbers from 0, or stage names. SkipNet's first block always runs: ``staged.skippable[1:]``.

    Raises:
        SplitError: no stage that a sample may skip, one in ``at`` that it may not skip, gates that do not fit, or a
            cascade.
    """
    if isinstance(net, DynamicNet) and net.cascade is not None:
        raise SplitError("stages of a cascade are not skipped; give a net whose exits do not build on each other")
    net = copy.deepcopy(net) if isinstance(net, DynamicNet) else DynamicNet(copy.deepcopy(net), [])
    staged = net.staged
    places = _gate_places(staged, at)
    taps = [staged.input_shape if s == 0 else _tap_shape(staged.stages[s - 1]) for s in places]
    where = {"at": places, "taps": [list(tap) for tap in taps], "input": list(staged.input_shape)}
    with seeded(seed):
        spec, own = made_gates(gates, [staged.stages[s].name for s in places], where, staged.zeros(0))
        net.gates = gates_from_spec(staged, spec, own)
    return net.eval()


def gates_from_spec(staged: StagedNet, spec: GateSpec, own: OwnPart | None = None) -> Gates:
    """Gates for these very stages from their JSON (as an artifact keeps it), with their costs."""
    x = staged.zeros(2)
    gates = build_gates(spec, own).to(x).eval()
    try:
        gates.start_macs = count_macs(gates.begin, x)
        with torch.no_grad():
            memory = gates.begin(x)
        gates.macs_g = tuple(
            count_macs(lambda tap, g=g: gates.ask(g, tap, memory), x.new_zeros(2, *shape))
            for g, shape in enumerate(spec["taps"])
        )
    except RuntimeError as error:
        raise SplitError(f"{spec['kind']} gates do not fit these stages: {error}") from error
    if own is not None and not gates.start_macs + sum(gates.macs_g):
        gates.macs_g = _held_by_each(gates)
    return gates


def _held_by_each(gates: Gates) -> tuple[int, ...]:
    """Costs of gates of one's own that torch counts no MACs of: each number that they hold counts once."""
    if isinstance(gates.body, EachItsOwn):
        return tuple(own_macs(0, gate) for gate in gates.body.gates)
    return (own_macs(0, gates.body),) * len(gates)


def from_specs(
    staged: StagedNet,
    specs: Sequence[HeadSpec],
    places: Sequence[int],
    gates: GateSpec | None = None,
    *,
    own_e: Sequence[OwnPart | None] | None = None,
    own_gates: OwnPart | None = None,
) -> DynamicNet:
    """A dynamic net on these very stages, heads and gates built from their JSON (as an artifact keeps it), and from
    modules where they are a user's own.
    """
    like = staged.zeros(0)
    exits = []
    for spec, s, own in zip(specs, places, own_e or [None] * len(specs), strict=True):
        stage = staged.stages[s]
        exit = build_exit(spec, after=s, name=stage.name, own=own).to(like).eval()
        try:
            exit.macs = exit_macs(exit, like.new_zeros(2, *_tap_shape(stage)))
        except RuntimeError as error:
            raise SplitError(f"a {spec['kind']} head does not fit the tap after {stage.name}: {error}") from error
        exits.append(exit)
    return DynamicNet(staged, exits, None if gates is None else gates_from_spec(staged, gates, own_gates)).eval()


def own_parts(net: DynamicNet) -> OwnParts:
    """What the net's heads and gates of one's own are built from again, for `from_specs`."""
    return {"own_e": [exit.own for exit in net.exits], "own_gates": None if net.gates is None else net.gates.own}


def _tap_shape(stage: Stage) -> tuple[int, ...]:
    return tuple(stage.live_shapes[stage.tap])


def _exit_places(staged: StagedNet, at: Sequence[int | str] | None) -> list[int]:
    names = [stage.name for stage in staged.stages]
    last = len(names) - 1
    if at is None:
        return list(range(last))
    places = []
    for place in _checked_list(at):
        s = names.index(place) if place in names else place
        if not isinstance(s, int) or not 0 <= s < last:
            raise SplitError(f"no exit can stand after {place!r}; stages: {', '.join(names[:last])}")
        places.append(s)
    return sorted(set(places))


def _checked_list(at: Sequence[int | str]) -> Sequence[int | str]:
    """Refuse one name, which would be read letter by letter."""
    if isinstance(at, str):
        raise SplitError(f"at={at!r} is one name; give a list of them: at=[{at!r}]")
    return at


def _gate_places(staged: StagedNet, at: Sequence[int | str] | None) -> list[int]:
    names = [staged.stages[s].name for s in staged.skippable]
    if not names:
        raise SplitError("no stage of this net may be skipped; split it with granularity='block'")
    if at is None:
        return list(staged.skippable)
    places = []
    for place in _checked_list(at):
        s = staged.skippable[names.index(place)] if place in names else place
        if not isinstance(s, int) or s not in staged.skippable:
            raise SplitError(f"no sample may skip stage {place!r}; stages to skip: {', '.join(names)}")
        places.append(s)
    if not places:
        raise SplitError(f"gates before no stage at all; name some of {', '.join(names)}")
    return sorted(set(places))
