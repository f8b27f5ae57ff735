"""An fx tracer that changes nothing but the model it traces, so that other threads go on undisturbed.

``torch.fx`` replaces ``nn.Module.__call__`` for the whole process while it traces. Here the calls and the parameters of
the traced modules themselves are watched instead, and what they keep meanwhile is taken away again.
"""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

from torch import ScriptObject, Tensor, fx, nn
from torch.fx import _symbolic_trace as symbolic

from dynext.errors import SplitError
from dynext.graph.answers import logits_of

ONE_AT_A_TIME = threading.RLock()
"""Functions marked with ``torch.fx.wrap`` are replaced in their files; two traces would undo each other's work."""

VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
BY_NAME_ONLY = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)


class LocalTracer(fx.Tracer):
    """``trace`` as in fx, for a module with one input tensor that nobody else uses."""

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """The graph of ``root``: its first argument is the input, the others keep their defaults.

        Raises:
            SplitError: several inputs, or several tensors as an answer.
        """
        self.root, self.root_module_name = root, type(root).__name__
        self.submodule_paths = {module: path for path, module in root.named_modules()}
        self.graph = fx.Graph(tracer_cls=type(self))
        self.tensor_attrs = _plain_tensors(root)
        x = self.create_proxy("placeholder", input_name(root), (), {})
        with ONE_AT_A_TIME, _marked(), self._functions(root.forward) as wrap_in, _watched(root, self, wrap_in):
            answer = logits_of(root.forward(x), type(root).__name__)
            self.create_node("output", "output", (self.create_arg(answer),), {})
        self.submodule_paths = None
        return self.graph

    @contextmanager
    def _functions(self, forward: Callable[..., Any]) -> Iterator[Callable[[Any], None]]:
        """Functions marked with ``torch.fx.wrap``, and those of ``math``, become nodes where they are given proxies.

        Everybody else's calls go through. Gives what does the same for the file of another function.
        """
        with symbolic._Patcher() as patcher:

            def wrap_in(function: Any) -> None:
                scope = getattr(inspect.unwrap(function), "__globals__", {})
                symbolic._autowrap_check(patcher, scope, self._autowrap_function_ids)

            symbolic._patch_wrapped_functions(patcher)
            wrap_in(forward)
            for module in self._autowrap_search:
                symbolic._autowrap_check(patcher, vars(module), self._autowrap_function_ids)
            yield wrap_in


def input_name(root: nn.Module) -> str:
    """What ``root`` calls its one input; a wrapper's ``*args`` takes it too.

    Raises:
        SplitError: further inputs without a default, or none that is given by position.
    """
    kind = type(root).__name__
    try:
        first, *others = inspect.signature(root.forward).parameters.values()
    except ValueError as error:  # no arguments at all, or none that Python can see
        raise SplitError(
            f"{kind}.forward takes no input that can be seen; put a module with forward(x) around it"
        ) from error
    required = [other.name for other in others if other.default is other.empty and other.kind not in VARIABLE]
    if required:
        raise SplitError(
            f"{kind} takes several inputs ({', '.join([first.name, *required])}); only a net with one input tensor can "
            f"be split: bind the others in a module around it"
        )
    if first.kind in BY_NAME_ONLY:
        raise SplitError(
            f"{kind}.forward takes its input by name ({first.name}); put a module with forward(x) around it"
        )
    return "x" if first.kind in VARIABLE else first.name


class _Call:
    """Stands in a traced module for its ``_call_impl``; a copy of the module is called as usual."""

    def __init__(self, tracer: fx.Tracer, module: nn.Module, wrap_in: Callable[[Any], None]) -> None:
        self.tracer, self.module, self.wrap_in = tracer, module, wrap_in

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.wrap_in(self.module.forward)
        return self.tracer.call_module(self.module, _usual_call(self.module), args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _usual_call(copy.deepcopy(self.module, memo))


def _usual_call(module: nn.Module) -> Callable[..., Any]:
    return MethodType(type(module)._call_impl, module)


class _Parameters(dict[str, Any]):
    """The parameters of a traced module: asked for one by name, it gives the tracer's proxy of it."""

    def __init__(self, plain: dict[str, Any], proxied: Callable[[str, Any], Any]) -> None:
        super().__init__(plain)
        self.proxied = proxied

    def __getitem__(self, name: str) -> Any:
        return self.proxied(name, super().__getitem__(name))

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return copy.deepcopy(dict(self), memo)


@contextmanager
def _watched(root: nn.Module, tracer: fx.Tracer, wrap_in: Callable[[Any], None]) -> Iterator[None]:
    """Calls and parameters of all modules go to ``tracer``; afterwards they hold what they held before."""
    held = [(vars(module), dict(vars(module)), _contents(vars(module))) for module in root.modules()]
    proxied = partial(_proxied, tracer, {})
    try:
        for module in list(root.modules()):
            vars(module)["_call_impl"] = _Call(tracer, module, wrap_in)
            if isinstance(module._parameters, dict):  # compiled TorchScript has none
                vars(module)["_parameters"] = _Parameters(module._parameters, proxied)
        yield
    finally:
        constants = {name: vars(root)[name] for name in tracer.tensor_attrs.values() if name in vars(root)}
        for holder, before, contents in held:
            holder.clear()
            holder.update(before)
            for container, content in contents:
                _refill(container, content)
        vars(root).update(constants)  # tensors that forward() made, for which the tracer found names


def _proxied(tracer: fx.Tracer, cache: dict[str, fx.Proxy], name: str, value: Any) -> Any:
    return tracer.getattr(name, value, cache)


def _contents(attributes: dict[str, Any]) -> list[tuple[Any, Any]]:
    """What lists, dicts and sets of a module hold: a forward that appends to one would leave proxies in it."""
    return [(value, copy.copy(value)) for value in attributes.values() if isinstance(value, list | dict | set)]


def _refill(container: Any, content: Any) -> None:
    if isinstance(container, list):
        container[:] = content
    else:
        container.clear()
        container.update(content)


class _Here:
    """True in the thread that traces, for as long as it does: others may go on calling compiled functions."""

    def __init__(self, before: Any) -> None:
        self.before, self.thread, self.tracing = before, threading.get_ident(), True

    def __bool__(self) -> bool:
        return (self.tracing and threading.get_ident() == self.thread) or bool(self.before)


@contextmanager
def _marked() -> Iterator[None]:
    """``torch.compile``, which cannot take proxies, is told of the trace in this thread."""
    here: Any = _Here(symbolic._is_fx_tracing_flag)
    symbolic._is_fx_tracing_flag = here
    try:
        yield
    finally:
        here.tracing = False
        if symbolic._is_fx_tracing_flag is here:
            symbolic._is_fx_tracing_flag = here.before


def _plain_tensors(root: nn.Module) -> dict[Any, str]:
    """Tensors that are attributes without being registered, with their paths."""
    return {
        value: f"{path}.{name}" if path else name
        for path, module in root.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor | ScriptObject)
    }
