"""A model as one flat graph, traced with torch.fx on a private copy in eval mode.

A module that cannot be traced is kept whole: the tracer remembers the path of the module being called, adds the
innermost one to its leaves when tracing fails, and tries again. Modules without children are kept whole from the
start, and so is every BatchNorm: they keep what they do in training, and their statistics can be found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError
from torch.nn.modules.batchnorm import _BatchNorm

from dynext.errors import SplitError, line
from dynext.graph.calls import calling_from_dicts
from dynext.graph.conditions import ShapeConditions
from dynext.graph.lines import current_line, line_of_error
from dynext.graph.probe import BATCHES
from dynext.graph.questions import InPlaceProxy
from dynext.graph.stand_ins import StandIns
from dynext.graph.tracer import ONE_AT_A_TIME, LocalTracer

BY_HAND = "give its stages by hand (dx.graph.stages_by_hand)"


class ModuleTracer(LocalTracer):
    """Records which node each module call starts from and ends at, and which module failed.

    ``node.meta["ends"]`` lists the paths of the modules that end at the node, innermost first;
    ``starts`` maps a path to the node that its last call took as first argument.
    """

    def __init__(self, whole: Iterable[str] = (), conditions: ShapeConditions | None = None) -> None:
        super().__init__()
        self.whole = frozenset(whole)
        self.conditions = conditions
        self.stand_ins = StandIns()
        self.starts: dict[str, fx.Node] = {}
        self.failed: str | None = None
        self._failure: Exception | None = None

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        with ONE_AT_A_TIME, self.stand_ins.placed():
            self.stand_ins.enter(root)
            return super().trace(root, concrete_args)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if autocast_is_on():
            raise SplitError(
                f"{type(self.root).__name__} turns on autocast in its forward, at {current_line()}; stages "
                f"would compute in another precision than the net: take it out and put it around the calls, or give "
                f"the net the precision itself (.to(torch.bfloat16))"
            )
        node = super().create_node(*args, **kwargs)
        node.meta["line"] = current_line()
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return InPlaceProxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if next(m.children(), None) is None or isinstance(m, _BatchNorm):
            return True
        if isinstance(m, nn.TransformerEncoder) and module_qualified_name not in self.whole:
            return False  # torch's own, and most of the net that holds it
        return module_qualified_name in self.whole or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.conditions is not None and self.conditions.running:
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        self.stand_ins.enter(m)
        try:
            out = super().call_module(m, forward, args, kwargs)
        except Exception as error:
            if self._failure is not error:  # the first to see an error is the innermost
                self._failure, self.failed = error, path
            raise
        if args and isinstance(args[0], fx.Proxy):
            self.starts[path] = args[0].node
        end = out.node if isinstance(out, fx.Proxy) else next(iter(reversed(self.graph.nodes)))
        end.meta.setdefault("ends", []).append(path)
        return out

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.decide(obj, bool))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return iter([obj[index] for index in range(self.decide(obj, len))])  # type: ignore[index]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        if self.conditions is not None and self.conditions.running:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def answers(self, obj: fx.Proxy, question: Callable[[Any], Any], counts: Sequence[int] = BATCHES) -> list[Any]:
        """What several numbers of samples answer.

        Raises:
            TraceError: that is not known before the net runs.
        """
        if self.conditions is None:
            raise TraceError("control flow that depends on a tensor")
        return self.conditions.answers(obj.node, question, counts)

    def decide(self, obj: fx.Proxy, question: Callable[[Any], Any]) -> Any:
        """The one answer that holds for all samples, for control flow."""
        if self.conditions is None:
            raise TraceError("control flow that depends on a tensor")
        try:
            return self.conditions.answer(obj.node, question)
        except TraceError as error:
            raise TraceError(f"{current_line()} has no answer that holds for all samples: {error}") from error


def trace(private: nn.Module, example: Tensor | None = None) -> fx.GraphModule:
    """``private`` (a copy: in-place work is still in it) as a graph with one input.

    With an ``example`` ``[b ...]`` of the input, control flow that is the same for all samples is followed.
    ``meta["whole"]`` of the result names the modules that had to be kept whole, ``meta["reasons"]`` says why, and
    ``meta["starts"]`` maps module paths to the node that their last call starts from.

    Raises:
        SplitError: several inputs, or untraceable even with modules kept whole.
    """
    whole: list[str] = []
    reasons: dict[str, str] = {}
    conditions = None if example is None else ShapeConditions(private, example)
    while True:
        tracer = ModuleTracer(whole, conditions)
        try:
            graph = calling_from_dicts(tracer.trace(private))
        except SplitError:
            raise
        except Exception as error:
            if tracer.failed is None or tracer.failed in whole:
                raise SplitError(f"{type(private).__name__} cannot be traced ({line(error)}); {BY_HAND}") from error
            whole.append(tracer.failed)
            reasons[tracer.failed] = f"{line(error)}, at {line_of_error(error)}"
            continue
        traced = fx.GraphModule(private, graph)
        traced.meta.update(whole=tuple(whole), reasons=reasons, starts=tracer.starts)
        return traced


def autocast_is_on() -> bool:
    """Whether operations on this thread choose their precision themselves."""
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
