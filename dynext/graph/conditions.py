"""Conditions on shapes, answered while tracing.

``if h % 2:`` has one answer for a net with a fixed input shape. What such a condition is computed from is run on
tensors without content, for several numbers of samples; where all agree, and nothing but shapes was read, the tracer
goes on along that branch.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.fx.proxy import TraceError

from dynext.errors import line
from dynext.graph.normal import is_size_query
from dynext.graph.probe import BATCHES, holds_tensor, take_samples

NUM_SAMPLES = (*BATCHES, 1, 1009)
"""One sample and very many besides the probe's numbers: ``if b == 1`` and ``if b > 64`` follow the batch too."""


class ShapeConditions:
    """Answers what a condition asks of a node, for a model that is being traced.

    The nodes run on a copy of the model whose tensors have a shape and no content.

    Attributes:
        running: modules are being called for their shapes, not to be traced.
    """

    def __init__(self, private: nn.Module, example: Tensor) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with FakeCopyMode(self._mode):
            self._model = fx.Interpreter(copy.deepcopy(private), graph=fx.Graph())
        self._inputs = [self._mode.from_tensor(take_samples(example, count)) for count in NUM_SAMPLES]
        self._results: dict[fx.Node, list[Any]] = {}
        self.running = False

    def answer(self, node: fx.Node, question: Callable[[Any], Any]) -> Any:
        """``question(what the node gives)``: the same for every number of samples, from nothing but shapes.

        Raises:
            TraceError: it depends on what a tensor holds, on its type or device, or on the number of samples.
        """
        for needed in self._unknown(node):
            self._results[needed] = [self._run(needed, index) for index in range(len(NUM_SAMPLES))]
        results = self._results[node]
        if question is bool and isinstance(results[0], Tensor):
            raise TraceError(f"node {node.name!r} is a tensor, and what it holds is not known before it runs")
        answers = [question(result) for result in results]
        if any(answer != answers[0] for answer in answers):
            each = ", ".join(f"{answer} for {count}" for answer, count in zip(answers, NUM_SAMPLES, strict=True))
            raise TraceError(f"node {node.name!r} follows the number of samples ({each})")
        return answers[0]

    def _unknown(self, node: fx.Node) -> list[fx.Node]:
        """The node and all it is computed from, in order, as far as they have not run."""
        needed, waiting = set(), [node]
        while waiting:
            source = waiting.pop()
            if source not in needed and source not in self._results:
                needed.add(source)
                waiting.extend(source.all_input_nodes)
        return [source for source in node.graph.nodes if source in needed]

    def _run(self, node: fx.Node, index: int) -> Any:
        """What the node gives for the number of samples at ``index``."""
        if node.op == "placeholder":
            return self._inputs[index]
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: self._results[source][index])
        self.running = True
        try:
            with self._mode:
                result = getattr(self._model, node.op)(node.target, args, kwargs)
        except Exception as error:
            raise TraceError(f"node {node.name!r} needs more than shapes ({line(error)})") from error
        finally:
            self.running = False
        if holds_tensor(args) and not (holds_tensor(result) or is_size_query(node) or node.target is operator.getitem):
            raise TraceError(f"node {node.name!r} asks a tensor for something else than its shape")
        return result
