"""Puts exits behind stages and gates before them, from fresh heads or from their JSON."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from dynext.errors import SplitError
from dynext.graph import Stage, StagedNet
from dynext.graph.macs import count_macs
from dynext.modules.exits import Heads, HeadSpec, build_exit
from dynext.modules.gates import Gates, GateSpec, build_gates
from dynext.net.dynamic_net import DynamicNet
from dynext.seeding import seeded
from dynext.usual_modes import in_usual_modes


@in_usual_modes
def attach(staged: StagedNet, heads: Heads, *, at: Sequence[int | str] | None = None, seed: int = 0) -> DynamicNet:
    """Put an untrained exit after every stage but the last, or after those named in ``at``.

    The stages are copied: training the dynamic net never changes ``staged``. Heads are initialized from ``seed``.

    Args:
        heads: what to put on a tap of a given shape, as `conv_heads`, `default_heads` give it.
        at: stage numbers from 0, or stage names.

    Raises:
        SplitError: no such stage, or a tap that the head cannot sit on.
    """
    staged = copy.deepcopy(staged)
    places = _exit_places(staged, at)
    specs = [heads(_tap_shape(staged.stages[s])) for s in places]
    with seeded(seed):
        return from_specs(staged, specs, places)


@in_usual_modes
def attach_gates(
    net: DynamicNet | StagedNet, gates: GateSpec, *, at: Sequence[int | str] | None = None, seed: int = 0
) -> DynamicNet:
    """A copy of ``net`` with untrained gates before every stage that a sample may skip, or before those in ``at``.

    Gates that are there already are replaced. The new ones are initialized from ``seed``.

    Args:
        gates: of which kind: `feedforward_gates`, `recurrent_gates`, `policy_gates`, `static_gates`, `random_gates`.
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
    spec = {**gates, "at": places, "taps": [list(tap) for tap in taps], "input": list(staged.input_shape)}
    with seeded(seed):
        net.gates = gates_from_spec(staged, spec)
    return net.eval()


def gates_from_spec(staged: StagedNet, spec: GateSpec) -> Gates:
    """Gates for these very stages from their JSON (as an artifact keeps it), with their costs."""
    x = staged.zeros(2)
    gates = build_gates(spec).to(x).eval()
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
    return gates


def from_specs(
    staged: StagedNet, specs: Sequence[HeadSpec], places: Sequence[int], gates: GateSpec | None = None
) -> DynamicNet:
    """A dynamic net on these very stages, heads and gates built from their JSON (as an artifact keeps it)."""
    like = staged.zeros(0)
    exits = []
    for spec, s in zip(specs, places, strict=True):
        stage = staged.stages[s]
        exit = build_exit(spec, after=s, name=stage.name).to(like).eval()
        tap = like.new_zeros(2, *_tap_shape(stage))
        try:
            exit.macs = count_macs(exit, tap)
        except RuntimeError as error:
            raise SplitError(f"a {spec['kind']} head does not fit the tap after {stage.name}: {error}") from error
        exits.append(exit)
    return DynamicNet(staged, exits, None if gates is None else gates_from_spec(staged, gates)).eval()


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
