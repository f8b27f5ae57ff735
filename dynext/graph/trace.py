"""A model as one flat graph, traced with torch.fx on a private copy in eval mode.

A module that cannot be traced is kept whole: the tracer remembers the path of the module being called, adds the
innermost one to its leaves when tracing fails, and tries again. Modules without children are kept whole from the
start, and so is every BatchNorm: they keep what they do in training, and their statistics can be found.
"""

from __future__ import annotations

import copy
import operator
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute, TraceError
from torch.nn.modules.batchnorm import _BatchNorm

from dynext.errors import SplitError, line
from dynext.graph.calls import calling_from_dicts
from dynext.graph.conditions import ShapeConditions

BY_HAND = "give its stages by hand (dx.graph.stages_by_hand)"


class InPlaceProxy(fx.Proxy):
    """Records ``x += y`` and ``x[i] = y`` as what they are; plain fx forgets that other names of ``x`` change too."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._record(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._record(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._record(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._record(operator.itruediv, other)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._record(operator.setitem, index, value)

    def __getattr__(self, k: str) -> Attribute:
        return InPlaceAttribute(self, k)

    def __len__(self) -> int:
        return int(self.tracer.length(self))  # type: ignore[attr-defined]

    def _record(self, operation: Callable[..., Any], *others: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operation, (self, *others), {})


class InPlaceAttribute(InPlaceProxy, Attribute):
    """``x.shape``, which has a length of its own."""


class ModuleTracer(fx.Tracer):
    """Records which node each module call starts from and ends at, and which module failed.

    ``node.meta["ends"]`` lists the paths of the modules that end at the node, innermost first;
    ``starts`` maps a path to the node that its last call took as first argument.
    """

    def __init__(self, whole: Iterable[str] = (), conditions: ShapeConditions | None = None) -> None:
        super().__init__()
        self.whole = frozenset(whole)
        self.conditions = conditions
        self.inside: list[nn.Module] = []
        self.starts: dict[str, fx.Node] = {}
        self.failed: str | None = None
        self._failure: Exception | None = None

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return InPlaceProxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if next(m.children(), None) is None or isinstance(m, _BatchNorm):
            return True
        return module_qualified_name in self.whole or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: dict[str, Any] | tuple[Any, ...] | None = None
    ) -> tuple[Any, list[Any]]:
        """Only the first argument is an input; the others get their defaults, or the model is refused."""
        root_fn, (root, first, *others) = super().create_args_for_root(root_fn, is_module, concrete_args)
        nodes = [proxy.node for proxy in others]
        required = [node.target for node in nodes if not node.args and not str(node.target).startswith("*")]
        if required:
            names = ", ".join(str(name) for name in [first.node.target, *required])
            raise SplitError(
                f"{type(root).__name__} takes several inputs ({names}); only a net with one input tensor can be split: "
                f"bind the others in a module around it"
            )
        for node in nodes:
            self.graph.erase_node(node)
        return root_fn, [root, first, *(_default(node) for node in nodes)]

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.conditions is not None and self.conditions.running:
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        self.inside.append(m)
        try:
            out = super().call_module(m, forward, args, kwargs)
        except Exception as error:
            if self._failure is not error:  # the first to see an error is the innermost
                self._failure, self.failed = error, path
            raise
        finally:
            self.inside.pop()
        if args and isinstance(args[0], fx.Proxy):
            self.starts[path] = args[0].node
        end = out.node if isinstance(out, fx.Proxy) else next(iter(reversed(self.graph.nodes)))
        end.meta.setdefault("ends", []).append(path)
        return out

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self._decide(obj, bool))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return iter([obj[index] for index in range(self.length(obj))])  # type: ignore[index]

    def length(self, obj: fx.Proxy) -> int:
        return int(self._decide(obj, len))

    def _decide(self, obj: fx.Proxy, question: Callable[[Any], Any]) -> Any:
        """The answer that shapes alone give, for control flow in a module that cannot be kept whole."""
        if self.conditions is None or not all(is_most(m, self.root) for m in self.inside):
            raise TraceError("control flow that depends on a tensor")
        try:
            return self.conditions.answer(obj.node, question)
        except TraceError as error:
            raise TraceError(f"{_asked_at()} has no answer that holds for all samples: {error}") from error


def trace(private: nn.Module, example: Tensor | None = None) -> fx.GraphModule:
    """``private`` (a copy: in-place work is still in it) as a graph with one input.

    With an ``example`` ``[b ...]`` of the input, control flow that depends on shapes alone is followed where keeping
    its module whole would leave nothing to cut. ``meta["whole"]`` of the result names the modules that had to be kept
    whole, ``meta["starts"]`` maps module paths to the node that their last call starts from.

    Raises:
        SplitError: several inputs, or untraceable even with modules kept whole.
    """
    whole: list[str] = []
    conditions: ShapeConditions | None = None
    while True:
        tracer = ModuleTracer(whole, conditions)
        try:
            graph = calling_from_dicts(tracer.trace(private))
        except SplitError:
            raise
        except Exception as error:
            failed = private if tracer.failed is None else private.get_submodule(tracer.failed)
            if conditions is None and example is not None and is_most(failed, private):
                conditions = ShapeConditions(private, example)
            elif tracer.failed is None or tracer.failed in whole:
                raise SplitError(f"{type(private).__name__} cannot be traced ({line(error)}); {BY_HAND}") from error
            else:
                whole.append(tracer.failed)
            continue
        traced = fx.GraphModule(private, graph)
        traced.meta.update(whole=tuple(whole), starts=tracer.starts)
        return traced


def private_copy(model: nn.Module) -> nn.Module:
    """A deep copy in eval mode; the model itself is never run nor changed."""
    try:
        return copy.deepcopy(model).eval()
    except Exception as error:
        raise SplitError(f"{type(model).__name__} cannot be copied ({line(error)}); {BY_HAND}") from error


def is_most(module: nn.Module, root: nn.Module) -> bool:
    """Whether keeping ``module`` whole would leave less than half of the parameters of ``root`` to cut between."""
    mine, all_of_them = (sum(parameter.numel() for parameter in m.parameters()) for m in (module, root))
    return module is root or 2 * mine > all_of_them


def _asked_at() -> str:
    """The line of the model's code that asks for the answer."""
    inside = (str(Path(fx.__file__).parent), __file__)
    frame = next(frame for frame in reversed(traceback.extract_stack()) if not frame.filename.startswith(inside))
    return f"`{frame.line}` ({Path(frame.filename).name}, line {frame.lineno})"


def _default(node: fx.Node) -> Any:
    """What an argument besides the input is bound to: its default, ``()`` for ``*args``, ``{}`` for ``**kwargs``."""
    if node.args:
        return node.args[0]
    return {} if str(node.target).startswith("**") else ()
