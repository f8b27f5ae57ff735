"""The gates' side of a dynamic run: which samples run the next stage, and how it is run for these alone.

A skipped stage leaves a sample's live tensors as they are. Gates before each stage cost one device synchronization a
stage; gates that decide at once cost none, since all decisions are on the host before the net runs.

Shapes: b samples that the live tensors carry, g gated stages.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from dynext.graph.stage import LiveTensors, Stage
from dynext.modules.gates import Gates, Memory
from dynext.modules.skip_rule import SkipRule, runs, threshold_logit
from dynext.runtime.cost import CostTable

Compact = Literal["auto", "always", "never"]


class Skips:
    """One run's decisions about the stages ahead; samples are followed by their position among the carried."""

    def __init__(self, gates: Gates, keep_g: SkipRule, cost: CostTable | None, compact: Compact) -> None:
        self.gates, self.keep_g, self.cost, self.compact = gates, keep_g, cost, compact
        self.gate_of = {s: g for g, s in enumerate(gates.at) if keep_g[g] is not None}
        self.memory: Memory = ()
        self.known_bg: Tensor | None = None
        """All decisions, on the host, where the gates decide at once."""
        self._own = False  # whether the live tensors are copies made here, free to be written into

    def begin(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Samples in the order in which they are to run, and that order; ``None`` where it is the given one.

        Gates that decide at once let samples of the same path be grouped: those that a stage runs for then lie side by
        side, or nearly so.
        """
        memory = self.gates.begin(x)
        if not self.gates.at_once:
            self.memory = memory
            return x, None
        least_g = memory[0].new_tensor([threshold_logit(keep) for keep in self.keep_g])
        self.known_bg = (~(memory[0] < least_g)).cpu()
        if len(x) == 1:
            return x, None
        paths_pg, path_b = self.known_bg.unique(dim=0, return_inverse=True)
        if len(paths_pg) == 1:
            return x, None
        order = path_b.argsort(stable=True)
        self.known_bg = self.known_bg[order]
        order = order.to(x.device)
        return x[order], order

    def decision(self, s: int, tap: Tensor) -> Tensor | None:
        """Which carried samples run stage ``s`` ``[b]``, bool; ``None`` for a stage that all of them run."""
        g = self.gate_of.get(s)
        if g is None:
            return None
        if self.known_bg is not None:
            return self.known_bg[:, g]
        return runs(self._ask(g, tap), self.keep_g[g])

    def sample_runs(self, s: int, tap: Tensor) -> bool:
        """Whether a sample that is alone runs the gated stage ``s``, by the comparison that decides in a batch."""
        g = self.gate_of[s]
        if self.known_bg is not None:
            return bool(self.known_bg[0, g])
        return not bool(self._ask(g, tap) < threshold_logit(self.keep_g[g]))

    def _ask(self, g: int, tap: Tensor) -> Tensor:
        logit_b, self.memory = self.gates.ask(g, tap, self.memory)
        return logit_b

    def through(
        self, s: int, stage: Stage, live: LiveTensors, run_b: Tensor | None, open_b: Tensor | None
    ) -> LiveTensors:
        """The live tensors behind ``stage``, run for the samples that want it and wait for an answer (``open_b``)."""
        if run_b is None:
            self._own = False
            return stage(*live)
        wanted_b = run_b if open_b is None else run_b & open_b.to(run_b.device)
        running = wanted_b.nonzero()[:, 0]
        if not len(running):
            return live
        if len(running) == len(run_b):
            self._own = False
            return stage(*live)
        if self._gather_pays(s, len(run_b), len(running)):
            return self._partly(stage, live, running)
        self._own = True
        mask_b = run_b.to(live[0].device)
        return tuple(
            ran.where(mask_b.view(-1, *[1] * (ran.ndim - 1)), skipped)
            for ran, skipped in zip(stage(*live), live, strict=True)
        )

    def stay(self, staying: Tensor) -> None:
        """Only the carried samples at ``staying`` are carried on."""
        self.memory = tuple(kept[staying] for kept in self.memory)
        if self.known_bg is not None:
            self.known_bg = self.known_bg[staying.to(self.known_bg.device)]
        self._own = True

    def _partly(self, stage: Stage, live: LiveTensors, running: Tensor) -> LiveTensors:
        place = _slice(running) if running.device.type == "cpu" else None
        index = running.to(live[0].device) if place is None else place
        out = stage(*(tensor[index] for tensor in live))
        if not self._own:  # the caller's samples, or what a stage may still share with something
            live, self._own = tuple(tensor.clone() for tensor in live), True
        for tensor, ran in zip(live, out, strict=True):
            tensor[index] = ran
        return live

    def _gather_pays(self, s: int, carried: int, running: int) -> bool:
        if self.compact == "never":
            return False
        if self.compact == "always" or self.cost is None:
            return True
        return self.cost.skipping_pays(s, carried=carried, running=running)


def _slice(running: Tensor) -> slice | None:
    """Ascending positions as a slice, which needs no gathering, where they have no gaps."""
    first, last = int(running[0]), int(running[-1])
    return slice(first, last + 1) if last - first + 1 == len(running) else None
