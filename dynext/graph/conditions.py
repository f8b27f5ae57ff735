"""What a net asks of its tensors while it is traced, answered where the answer is the same for all samples.

``if h % 2:`` and ``if x.dtype != w.dtype:`` have one answer for a net with a fixed input. What such a question is
about is run on tensors without content, for several numbers of samples; where all agree, that is the answer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.fx.proxy import TraceError
from torch.utils._pytree import tree_map_only

from dynext.errors import line
from dynext.graph.memoized import Memoized
from dynext.graph.probe import BATCHES, take_samples
from dynext.seeding import generator

NUM_SAMPLES = (*BATCHES, 1, 1009)
"""One sample and very many besides the probe's numbers: ``if b == 1`` and ``if b > 64`` follow the batch too."""


class ShapeConditions:
    """Answers what is asked of a node, for a model that is being traced.

    The nodes run on a copy of the model whose tensors have a shape, a type and a device, and no content.

    Attributes:
        running: modules are being called for their shapes, not to be traced.
    """

    def __init__(self, private: nn.Module, example: Tensor) -> None:
        self._private, self._example = private, example
        self._results: dict[int, dict[fx.Node, Any]] = {count: {} for count in NUM_SAMPLES}
        self.running = False

    @cached_property
    def _mode(self) -> FakeTensorMode:
        return FakeTensorMode(allow_non_fake_inputs=True)

    @cached_property
    def _memoized(self) -> Memoized:
        return Memoized()

    @cached_property
    def _model(self) -> fx.Interpreter:
        with FakeCopyMode(self._mode):
            return fx.Interpreter(copy.deepcopy(self._private), graph=fx.Graph())

    def answers(self, node: fx.Node, question: Callable[[Any], Any], counts: Sequence[int] = BATCHES) -> list[Any]:
        """``question(what the node gives)`` for each number of samples in ``counts``.

        Raises:
            TraceError: it depends on what a tensor holds.
        """
        results = [self._result(node, count) for count in counts]
        try:
            return [question(result) for result in results]
        except Exception as error:
            raise TraceError(f"node {node.name!r} cannot be asked that ({line(error)})") from error

    def answer(self, node: fx.Node, question: Callable[[Any], Any]) -> Any:
        """The one answer that holds for every number of samples.

        Raises:
            TraceError: it depends on what a tensor holds, or on the number of samples.
        """
        if question in (bool, int, float) and isinstance(self._result(node, NUM_SAMPLES[0]), Tensor):
            raise TraceError(f"node {node.name!r} is a tensor, and what it holds is not known before it runs")
        answers = self.answers(node, question, NUM_SAMPLES)
        if any(answer != answers[0] for answer in answers):
            each = ", ".join(f"{answer} for {count}" for answer, count in zip(answers, NUM_SAMPLES, strict=True))
            raise TraceError(f"node {node.name!r} follows the number of samples ({each})")
        return answers[0]

    def _result(self, node: fx.Node, count: int) -> Any:
        results = self._results[count]
        for needed in _unknown(node, results):
            results[needed] = self._run(needed, count)
        return results[node]

    def _run(self, node: fx.Node, count: int) -> Any:
        """What the node gives for ``count`` samples."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: self._results[count][source])
        self.running = True
        try:
            if node.op == "placeholder":
                return self._mode.from_tensor(take_samples(self._example, count))
            try:
                with self._mode, self._memoized.forgotten():
                    return getattr(self._model, node.op)(node.target, args, kwargs)
            except Exception:
                if node.op != "call_module":
                    raise
                return self._run_with_content(node, count, args, kwargs)
        except Exception as error:
            raise TraceError(f"node {node.name!r} needs more than shapes ({line(error)})") from error
        finally:
            self.running = False

    def _run_with_content(self, node: fx.Node, count: int, args: Any, kwargs: Any) -> Any:
        """A module that is kept whole because it looks into its tensors: what it gives for random ones."""
        if count not in BATCHES:
            small, large = (self._result(node, known) for known in BATCHES)
            with self._mode:
                return small.new_empty(_extrapolated(small.shape, large.shape, count))
        module = copy.deepcopy(self._private.get_submodule(str(node.target)))
        args, kwargs = tree_map_only(Tensor, _random_like, (args, kwargs))
        return tree_map_only(Tensor, self._mode.from_tensor, module(*args, **kwargs))


def _random_like(fake: Tensor) -> Tensor:
    if not fake.is_floating_point():
        return torch.zeros(fake.shape, dtype=fake.dtype, device=fake.device)
    return torch.randn(fake.shape, generator=generator(0)).to(fake.device, fake.dtype)


def _extrapolated(small: Sequence[int], large: Sequence[int], count: int) -> list[int]:
    return [a + (b - a) * (count - BATCHES[0]) for a, b in zip(small, large, strict=True)]


def _unknown(node: fx.Node, known: Mapping[fx.Node, Any]) -> list[fx.Node]:
    """The node and all it is computed from, in order, as far as they have not run."""
    if node in known:
        return []
    needed, waiting = set(), [node]
    while waiting:
        source = waiting.pop()
        if source not in needed and source not in known:
            needed.add(source)
            waiting.extend(source.all_input_nodes)
    return [source for source in node.graph.nodes if source in needed]
