"""The dynamic net: stages, exits between them, and gates that let rows skip some."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from dynext.errors import ModelError, SplitError
from dynext.graph import Stage, StagedNet
from dynext.graph.macs import count_macs
from dynext.modules.exits import Exit, Heads, HeadSpec, build_exit
from dynext.modules.gates import Gates, GateSpec, build_gates
from dynext.runtime.engine import Compact, run
from dynext.seeding import seeded
from dynext.types import InputSpec, Prediction

if TYPE_CHECKING:
    from dynext.policy.policy import Policy
    from dynext.runtime.cost import CostTable


class DynamicNet(nn.Module):
    """A staged net with exits and perhaps gates. ``forward`` is the static net's, always; ``run`` executes dynamically.

    Shapes: b rows, e exits (the last is the full net), k classes.
    """

    def __init__(self, staged: StagedNet, exits: Sequence[Exit], gates: Gates | None = None) -> None:
        super().__init__()
        self.staged = staged
        self.exits = cast("list[Exit]", nn.ModuleList(exits))
        self.gates = gates
        self.cost: CostTable | None = None
        """Measured stage times by rows; `run` compacts by them where they are known."""
        self.cascade: dict[str, Any] | None = None
        """How `dynext.net.cascade` made this net out of one with plain exits, as JSON; ``None`` where it did not."""
        self.int8: dict[str, Any] | None = None
        """Which layers `dynext.net.int8` has put into 8 bits, as JSON; ``None`` for a float net."""

    @property
    def num_exits(self) -> int:
        """Exits, the full net included."""
        return len(self.exits) + 1

    @property
    def num_gates(self) -> int:
        """Stages that a gate decides about."""
        return 0 if self.gates is None else len(self.gates)

    @property
    def num_classes(self) -> int:
        return self.staged.num_classes

    @property
    def exit_names(self) -> tuple[str, ...]:
        """Where each exit stands; the last is the static net's own output."""
        return (*(exit.name for exit in self.exits), "output")

    @property
    def trunk_macs_e(self) -> tuple[int, ...]:
        """MACs per row of the stages up to each exit, heads not counted; the last is the static net's."""
        macs_s = [stage.macs for stage in self.staged.stages]
        return (*(sum(macs_s[: exit.after + 1]) for exit in self.exits), sum(macs_s))

    @property
    def head_macs_e(self) -> tuple[int, ...]:
        """MACs per row of each exit's head; 0 for the last, which is part of the trunk."""
        return (*(exit.macs for exit in self.exits), 0)

    def check_policy(self, policy: Policy) -> None:
        """Raises PolicyError: a policy for another number of exits or gates."""
        policy.check_exits(self.num_exits)
        policy.check_gates(self.num_gates)

    def check_described(self, spec: InputSpec, class_names: Sequence[str] | None) -> None:
        """Raises ModelError: rows of another shape than the net eats, or not one name a class."""
        if tuple(spec.shape) != self.staged.input_shape:
            raise ModelError(f"the spec says rows of {tuple(spec.shape)}, the net eats {self.staged.input_shape}")
        if class_names is not None and len(class_names) != self.num_classes:
            raise ModelError(f"{len(class_names)} class names for {self.num_classes} classes; give one each, or none")

    def forward(self, x: Tensor) -> Tensor:
        """``[b ...]`` to the final logits ``[b k]``: a drop-in for the static net."""
        return self.staged(x)

    def taps(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """What each early exit sees (``e - 1`` tensors ``[b ...]``), and the final logits ``[b k]``."""
        live: tuple[Tensor, ...] = (x,)
        taps = []
        wanted = {exit.after for exit in self.exits}
        for s, stage in enumerate(self.staged.stages):
            live = stage(*live)
            if s in wanted:
                taps.append(live[stage.tap])
        return taps, live[0]

    def all_exits(self, x: Tensor) -> Tensor:
        """Every exit's logits ``[b e k]``; nothing is skipped."""
        taps, final = self.taps(x)
        early = [exit(tap) for exit, tap in zip(self.exits, taps, strict=True)]
        return torch.stack([*early, final], dim=1)

    def run(
        self, x: Tensor, policy: Policy, *, compact: Compact = "auto", deadline_ms: float | None = None
    ) -> Prediction:
        """Execute ``policy``: see `dynext.runtime.engine.run`."""
        return run(self, x, policy, compact=compact, deadline_ms=deadline_ms)


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
    places = _places(staged, at)
    specs = [heads(_tap_shape(staged.stages[s])) for s in places]
    with seeded(seed):
        return from_specs(staged, specs, places)


def attach_gates(
    net: DynamicNet | StagedNet, gates: GateSpec, *, at: Sequence[int | str] | None = None, seed: int = 0
) -> DynamicNet:
    """A copy of ``net`` with untrained gates before every stage that a row may skip, or before those in ``at``.

    Gates that are there already are replaced. The new ones are initialized from ``seed``.

    Args:
        gates: of which kind: `feedforward_gates`, `recurrent_gates`, `policy_gates`, `static_gates`, `random_gates`.
        at: stage numbers from 0, or stage names. SkipNet's first block always runs: ``staged.skippable[1:]``.

    Raises:
        SplitError: no stage that a row may skip, one in ``at`` that it may not, gates that do not fit, or a cascade.
    """
    if isinstance(net, DynamicNet) and net.cascade is not None:
        raise SplitError("stages of a cascade are not skipped; give a net whose exits do not build on each other")
    net = copy.deepcopy(net) if isinstance(net, DynamicNet) else DynamicNet(copy.deepcopy(net), [])
    staged = net.staged
    places = _gated(staged, at)
    taps = [staged.input_shape if s == 0 else _tap_shape(staged.stages[s - 1]) for s in places]
    spec = {**gates, "at": places, "taps": [list(tap) for tap in taps], "input": list(staged.input_shape)}
    with seeded(seed):
        net.gates = gates_from_spec(staged, spec)
    return net.eval()


def gates_from_spec(staged: StagedNet, spec: GateSpec) -> Gates:
    """Gates for these very stages from their JSON (as an artefact keeps it), with their costs."""
    like = next(staged.parameters(), torch.empty(()))
    gates = build_gates(spec).to(device=like.device, dtype=like.dtype).eval()
    x = torch.zeros(2, *staged.input_shape, dtype=like.dtype, device=like.device)
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
    """A dynamic net on these very stages, heads and gates built from their JSON (as an artefact keeps it)."""
    like = next(staged.parameters(), torch.empty(()))
    exits = []
    for spec, s in zip(specs, places, strict=True):
        stage = staged.stages[s]
        exit = build_exit(spec, after=s, name=stage.name).to(device=like.device, dtype=like.dtype).eval()
        tap = torch.zeros(2, *_tap_shape(stage), dtype=like.dtype, device=like.device)
        try:
            exit.macs = count_macs(exit, tap)
        except RuntimeError as error:
            raise SplitError(f"a {spec['kind']} head does not fit the tap after {stage.name}: {error}") from error
        exits.append(exit)
    return DynamicNet(staged, exits, None if gates is None else gates_from_spec(staged, gates)).eval()


def _tap_shape(stage: Stage) -> tuple[int, ...]:
    return tuple(stage.live_shapes[stage.tap])


def _places(staged: StagedNet, at: Sequence[int | str] | None) -> list[int]:
    names = [stage.name for stage in staged.stages]
    last = len(names) - 1
    if at is None:
        return list(range(last))
    places = []
    for place in _several(at):
        s = names.index(place) if place in names else place
        if not isinstance(s, int) or not 0 <= s < last:
            raise SplitError(f"no exit can stand after {place!r}; stages: {', '.join(names[:last])}")
        places.append(s)
    return sorted(set(places))


def _several(at: Sequence[int | str]) -> Sequence[int | str]:
    """Refuse one name, which would be read letter by letter."""
    if isinstance(at, str):
        raise SplitError(f"at={at!r} is one name; give a list of them: at=[{at!r}]")
    return at


def _gated(staged: StagedNet, at: Sequence[int | str] | None) -> list[int]:
    names = [staged.stages[s].name for s in staged.skippable]
    if not names:
        raise SplitError("no stage of this net may be skipped; split it with granularity='block'")
    if at is None:
        return list(staged.skippable)
    places = []
    for place in _several(at):
        s = staged.skippable[names.index(place)] if place in names else place
        if not isinstance(s, int) or s not in staged.skippable:
            raise SplitError(f"no row may skip stage {place!r}; stages to skip: {', '.join(names)}")
        places.append(s)
    if not places:
        raise SplitError(f"gates before no stage at all; name some of {', '.join(names)}")
    return sorted(set(places))
