"""What every node of a graph gives, recorded by running it with 2 and with 3 samples.

The second batch size tells a batch dimension from any other number: a Python value that follows it goes stale as soon
as samples leave the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from dynext.errors import SplitError, line
from dynext.graph.macs import MacCounter, counting
from dynext.graph.memoized import Memoized

BATCHES = (2, 3)


@dataclass(frozen=True, kw_only=True)
class NodeRecord:
    """What one node gave in one run.

    ``shape`` and ``dtype`` describe a tensor (else ``None``), ``value`` is a Python value, ``macs`` are of all samples
    together, ``same`` says that the node gave back its first argument, ``changed`` lists the nodes whose tensor it
    changed in place.
    """

    is_tensor: bool
    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    value: Any = None
    macs: int = 0
    same: bool = False
    changed: tuple[fx.Node, ...] = ()


class Probe(fx.Interpreter):
    """Runs a graph once and keeps a `NodeRecord` per node, never the tensors."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.records: dict[fx.Node, NodeRecord] = {}
        self.counter: MacCounter | None = None

    def run_node(self, n: fx.Node) -> Any:
        given = [(tensor, tensor._version) for tensor in self._tensors(n)]
        before = self._total()
        out = super().run_node(n)
        changed = [tensor for tensor, version in given if tensor._version != version]
        self.records[n] = NodeRecord(
            is_tensor=isinstance(out, Tensor),
            shape=tuple(out.shape) if isinstance(out, Tensor) else None,
            dtype=out.dtype if isinstance(out, Tensor) else None,
            value=None if holds_tensor(out) else out,
            macs=self._total() - before,
            same=bool(given) and given[0][0] is out,
            changed=tuple(node for node, value in self.env.items() if any(value is tensor for tensor in changed)),
        )
        return out

    def _tensors(self, node: fx.Node) -> Iterator[Tensor]:
        for source in node.all_input_nodes:
            value = self.env[source]
            for item in value if isinstance(value, tuple | list) else (value,):
                if isinstance(item, Tensor) and not item.is_inference():
                    yield item

    def _total(self) -> int:
        return 0 if self.counter is None else self.counter.total()


class ProbeError(SplitError):
    """The graph does not run with this number of samples, or not on tensors without content."""


def probe(
    traced: fx.GraphModule, x: Tensor, *, count: bool = False, fake: bool = False
) -> tuple[dict[fx.Node, NodeRecord], Any]:
    """One run on ``x``: what each node gave, and the output.

    Args:
        count: also count MACs.
        fake: run on tensors that have a shape and no content, which costs next to nothing; a module that looks into
            its tensors, or that keeps some of them, then fails.

    Raises:
        ProbeError: the graph does not run.
    """
    runner = Probe(traced)
    try:
        with ExitStack() as modes:
            if fake:
                modes.enter_context(Memoized().forgotten(traced.modules()))
                x = modes.enter_context(FakeTensorMode(allow_non_fake_inputs=True)).from_tensor(x)
            if count:
                runner.counter = modes.enter_context(counting())
            out = runner.run(x)
    except Exception as error:
        node = list(traced.graph.nodes)[len(runner.records)]
        raise ProbeError(
            f"the traced net fails with {len(x)} samples at node {node.name!r} ({line(error)}); "
            f"a net whose batch size is written down somewhere cannot lose samples"
        ) from error
    if fake and any(holds_tensor(vars(module), FakeTensor) for module in traced.modules()):
        raise ProbeError("a module keeps what it computes, and would keep tensors without content")
    return runner.records, out


def take_samples(example: Tensor, count: int) -> Tensor:
    """``count`` samples of ``example``, repeated where it has fewer."""
    return example[torch.arange(count, device=example.device) % len(example)]


def holds_tensor(value: Any, kind: type[Tensor] = Tensor) -> bool:
    """Whether a tensor sits anywhere inside a node's result, or inside what a module keeps."""
    if isinstance(value, dict):
        return any(holds_tensor(item, kind) for item in value.values())
    if isinstance(value, tuple | list):
        return any(holds_tensor(item, kind) for item in value)
    return isinstance(value, kind)
