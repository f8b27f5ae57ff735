"""A model as one flat graph, traced with torch.fx on a private copy in eval mode.

A module that cannot be traced is kept whole: the tracer remembers the path of the module being called, adds the
innermost one to its leaves when tracing fails, and tries again. Modules without children are kept whole from the
start, and so is every BatchNorm: they keep what they do in training, and their statistics can be found.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dynext.errors import SplitError

BY_HAND = "give its stages by hand (dx.stages_by_hand)"


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

    def _record(self, operation: Callable[..., Any], *others: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operation, (self, *others), {})


class ModuleTracer(fx.Tracer):
    """Records which node each module call starts from and ends at, and which module failed.

    ``node.meta["ends"]`` lists the paths of the modules that end at the node, innermost first;
    ``starts`` maps a path to the node that its last call took as first argument.
    """

    def __init__(self, whole: Iterable[str] = ()) -> None:
        super().__init__()
        self.whole = frozenset(whole)
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
        path = self.path_of_module(m)
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


def trace(private: nn.Module) -> fx.GraphModule:
    """``private`` (a copy: in-place work is still in it) as a graph with one input.

    ``meta["whole"]`` of the result names the modules that had to be kept whole, ``meta["starts"]`` maps module paths
    to the node that their last call starts from.

    Raises:
        SplitError: several inputs, or untraceable even with modules kept whole.
    """
    whole: list[str] = []
    while True:
        tracer = ModuleTracer(whole)
        try:
            graph = tracer.trace(private)
        except SplitError:
            raise
        except Exception as error:
            if tracer.failed is None or tracer.failed in whole:
                raise SplitError(f"{type(private).__name__} cannot be traced ({line(error)}); {BY_HAND}") from error
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


def line(error: Exception) -> str:
    """An error as one line, for the message of the SplitError around it."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def _default(node: fx.Node) -> Any:
    """What an argument besides the input is bound to: its default, ``()`` for ``*args``, ``{}`` for ``**kwargs``."""
    if node.args:
        return node.args[0]
    return {} if str(node.target).startswith("**") else ()
