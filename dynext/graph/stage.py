"""Stages: the pieces of a cut net, each owning its tensors, and the net they make when chained.

Shapes: b samples in a batch, k classes. Shapes of live tensors are per sample, without the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from dynext.brief import brief
from dynext.graph.copying import copy_module
from dynext.graph.macs import param_bytes
from dynext.text_table import text_table

LiveTensors = tuple[Tensor, ...]
"""What is handed from stage to stage: tensors ``[b ...]``."""

OUTPUT = "output"
"""Name of the last stage, the one that gives the logits."""


class Stage(nn.Module):
    """One piece of a cut net: takes the live tensors, gives the live tensors.

    Attributes:
        name: where it ends, a module path or the name of an fx node; the last one is ``"output"``.
        live_shapes: per-sample shapes of the tensors that it gives; ``live_bytes`` is their size per sample.
        tap: which of them an exit taps.
        skippable: a sample may skip it, because its input goes through to its output with the same shape.
        macs: MACs per sample.
        param_bytes: bytes of its parameters and buffers.
    """

    def __init__(
        self,
        body: nn.Module,
        *,
        name: str,
        num_live_in: int,
        live: Sequence[tuple[tuple[int, ...], torch.dtype]],
        tap: int,
        skippable: bool,
        macs: int,
    ) -> None:
        super().__init__()
        self.body = body
        self.name = name
        self.num_live_in = num_live_in
        self.num_live_out = len(live)
        self.live_shapes = tuple(shape for shape, _ in live)
        self.live_bytes = sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in live)
        self.tap = tap
        self.skippable = skippable
        self.macs = macs
        self.param_bytes = param_bytes(body)

    def forward(self, *live: Tensor) -> LiveTensors:
        out = self.body(*live)
        return tuple(out) if isinstance(out, tuple | list) else (out,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy_module(self, memo)  # what a module kept whole holds may be no thing to copy

    def __repr__(self) -> str:
        return f"Stage({self.name!r}, macs={self.macs:,}, skippable={self.skippable}; its layers: print(stage.body))"


def walk(stages: Iterable[Stage], *live: Tensor) -> Iterator[tuple[Stage, LiveTensors]]:
    """Run the live tensors through ``stages`` in turn; gives each stage with the tensors that are live after it."""
    for stage in stages:
        live = stage(*live)
        yield stage, live


class StagedNet(nn.Module):
    """A net as a chain of stages; ``forward`` gives what the net gave, ``[b ...]`` to logits ``[b k]``.

    Attributes:
        cuts: names such that ``split(model, example, after=cuts, granularity=granularity)`` builds the same stages.
        granularity: ``"stage"`` or ``"block"``, or ``"hand"`` where the stages were given by hand.
        input_shape: of one sample.
        notes: what is in the way of an exit that saves something, in words; empty where nothing is.
        shrunk: what `dynext.graph.shrink` took away since, as JSON; ``None`` where the stages are the model's.
    """

    def __init__(
        self, stages: Sequence[Stage], *, input_shape: tuple[int, ...], num_classes: int, granularity: str
    ) -> None:
        super().__init__()
        self.stages = cast("list[Stage]", nn.ModuleList(stages))
        self.input_shape = input_shape
        self.num_classes = num_classes
        self.cuts = tuple(stage.name for stage in stages[:-1])
        self.granularity = granularity
        self.cosine = False
        """Whether a cosine classifier stands in the place of the layer that gave the logits."""
        self.notes: tuple[str, ...] = ()
        self.shrunk: dict[str, Any] | None = None

    def __repr__(self) -> str:
        names = brief(tuple(stage.name for stage in self.stages))
        size = "x".join(map(str, self.input_shape))
        return (
            f"{type(self).__name__}({len(self.stages)} stages {names}, input {size}, {self.num_classes} classes, "
            f"{self.macs / 1e6:,.2f} M MACs; its layers: print(stage.body))"
        )

    def forward(self, x: Tensor) -> Tensor:
        live: LiveTensors = (x,)
        for stage in self.stages:  # no generator here: torch.compile and torch.export read this method
            live = stage(*live)
        return live[0]

    def walk(self, x: Tensor) -> Iterator[tuple[Stage, LiveTensors]]:
        """Run ``x [b ...]`` through the stages; gives each stage with the tensors that are live after it."""
        return walk(self.stages, x)

    def zeros(self, count: int) -> Tensor:
        """``count`` samples of zeros ``[b ...]``, of the type of the net's parameters and on their device."""
        like = next(self.parameters(), torch.empty(()))
        return like.new_zeros(count, *self.input_shape)

    @property
    def macs(self) -> int:
        """MACs per sample of the whole net."""
        return sum(int(stage.macs) for stage in self.stages)

    @property
    def skippable(self) -> tuple[int, ...]:
        """Numbers of the stages that a sample may skip."""
        return tuple(s for s, stage in enumerate(self.stages) if stage.skippable)

    def table(self) -> str:
        """The stages as text: where each ends, what it hands on, what it costs, whether a sample may skip it."""
        header = ("stage", "ends after", "live tensors", "MACs", "up to here", "skippable")
        return text_table([header, *self._lines()], left=(1, 2, 5))

    def _lines(self) -> list[tuple[str, ...]]:
        lines: list[tuple[str, ...]] = []
        spent = 0
        for index, stage in enumerate(self.stages):
            spent += int(stage.macs)
            shapes = ", ".join("x".join(map(str, shape)) for shape in stage.live_shapes)
            share = f"{100 * spent / max(self.macs, 1):.1f} %"
            skippable = "yes" if stage.skippable else "-"
            lines.append((str(index), str(stage.name), shapes, f"{stage.macs:,}", share, skippable))
        return lines

    def extra_repr(self) -> str:
        return "\n".join(f"note: {note}" for note in self.notes)

    def __str__(self) -> str:
        return "\n".join([self.table(), *(f"\nNote: {note}" for note in self.notes)])
