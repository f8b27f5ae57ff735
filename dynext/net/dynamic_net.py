"""The dynamic net: stages, exits between them, and gates that let samples skip some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from dynext.data.content import Content
from dynext.errors import ModelError
from dynext.graph import StagedNet
from dynext.modules.exits import Exit
from dynext.modules.gates import Gates
from dynext.policy.policy import Policy
from dynext.runtime.cost import CostTable
from dynext.runtime.engine import Compact, run
from dynext.types import InputSpec, Prediction

MOST_LINES = 12
"""Of a prompt's; nets of more exits show the first and the last."""


class DynamicNet(nn.Module):
    """A staged net with exits and perhaps gates. ``forward`` is the static net's, always; ``run`` executes dynamically.

    Shapes: b samples, e exits (the last is the full net), k classes.
    """

    def __init__(self, staged: StagedNet, exits: Sequence[Exit], gates: Gates | None = None) -> None:
        super().__init__()
        self.staged = staged
        self.exits = cast("list[Exit]", nn.ModuleList(exits))
        self.gates = gates
        self.cost: CostTable | None = None
        """Measured times of stages and exits by the number of samples; `run` compacts by them where they are known."""
        self.cascade: dict[str, Any] | None = None
        """How `dynext.net.cascade` made this net out of one with plain exits, as JSON; ``None`` where it did not."""
        self.int8: dict[str, Any] | None = None
        """Which layers `dynext.net.int8` has put into 8 bits, as JSON; ``None`` for a float net."""
        self.seen = Content()
        """Which real samples its exits have learned from: thresholds that are chosen on these promise too much."""
        self.spec: InputSpec | None = None
        """How pixels are normalized for this net, where that is known: verbs then ask nobody for ``spec=``."""

    def __repr__(self) -> str:
        """A line for each exit; the layers are shown by ``net.staged.stages`` and ``net.exits``."""
        macs_e = [trunk + head for trunk, head in zip(self.trunk_macs_e, self.head_macs_e, strict=True)]
        lines = [
            f"  exit {e} after {name}: {macs / 1e6:,.2f} M MACs"
            for e, (name, macs) in enumerate(zip(self.exit_names, macs_e, strict=True))
        ]
        if len(lines) > MOST_LINES:
            lines = [*lines[: MOST_LINES - 2], f"  ... {len(lines)} exits in all", lines[-1]]
        gates = f", {self.num_gates} gates" if self.num_gates else ""
        size = "x".join(map(str, self.staged.input_shape))
        head = f"{type(self).__name__}(input {size}, {self.num_classes} classes, {self.num_exits} exits{gates}"
        return "\n".join([head, *lines]) + ")"

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
    def exit_stages(self) -> tuple[int, ...]:
        """The stage that each exit stands after, from 0; the last exit's is the last stage."""
        return (*(exit.after for exit in self.exits), len(self.staged.stages) - 1)

    @property
    def trunk_macs_e(self) -> tuple[int, ...]:
        """MACs per sample of the stages up to each exit, heads not counted; the last is the static net's."""
        macs_s = [stage.macs for stage in self.staged.stages]
        return tuple(sum(macs_s[: s + 1]) for s in self.exit_stages)

    @property
    def head_macs_e(self) -> tuple[int, ...]:
        """MACs per sample of each exit's head; 0 for the last, which is part of the trunk."""
        return (*(exit.macs for exit in self.exits), 0)

    def check_policy(self, policy: Policy) -> None:
        """Raises PolicyError: a policy for another number of exits or gates."""
        policy.check_exits(self.num_exits)
        policy.check_gates(self.num_gates)

    def check_described(self, spec: InputSpec, class_names: Sequence[str] | None) -> None:
        """Raises ModelError: samples of another shape than the model expects, or not one name a class."""
        if tuple(spec.shape) != self.staged.input_shape:
            raise ModelError(
                f"the spec says samples of {tuple(spec.shape)}, the model expects {self.staged.input_shape}"
            )
        if class_names is not None and len(class_names) != self.num_classes:
            raise ModelError(f"{len(class_names)} class names for {self.num_classes} classes; give one each, or none")

    def forward(self, x: Tensor) -> Tensor:
        """``[b ...]`` to the final logits ``[b k]``: a drop-in for the static net."""
        return self.staged(x)

    def taps(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """What each early exit sees (``e - 1`` tensors ``[b ...]``), and the final logits ``[b k]``."""
        taps: list[Tensor] = []
        wanted = set(self.exit_stages[:-1])
        for s, (stage, live) in enumerate(self.staged.walk(x)):
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
