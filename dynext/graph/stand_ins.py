"""What a proxy cannot be given, while a net is traced: ``len``, ``isinstance``, some of torch's functions, einops.

Each is replaced, where the net's code finds it, by a function that records or answers if it sees a proxy of this trace,
and else does what it always does; so other threads never notice.
"""

from __future__ import annotations

import builtins
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from dynext.graph.conditions import NUM_SAMPLES

FACTORIES = ("arange", "empty", "eye", "finfo", "full", "iinfo", "linspace", "ones", "rand", "randn", "tensor", "zeros")
"""Functions of torch that fail, or misread their arguments, when given a proxy as a size, a type or a device."""
EINOPS = ("rearrange", "reduce", "repeat", "einsum", "pack", "unpack")


class StandIns:
    """Replaces them in the globals of the code that is traced; all are put back at the end."""

    def __init__(self) -> None:
        self._kept: list[tuple[dict[str, Any], str, Any]] = []
        self._seen: set[int] = set()

    @contextmanager
    def placed(self) -> Iterator[None]:
        try:
            for name in FACTORIES:
                self._put(vars(torch), name, _recording(getattr(torch, name)))
            self._put(vars(torch), "is_tensor", lambda value: _isinstance(value, Tensor))
            self._put_einops()
            yield
        finally:
            for namespace, name, value in reversed(self._kept):
                if value is None:
                    namespace.pop(name, None)
                else:
                    namespace[name] = value

    def enter(self, module: nn.Module) -> None:
        """Also in the globals of the code of ``module``."""
        forward = inspect.unwrap(module.forward)
        for namespace in (
            getattr(forward, "__globals__", {}),
            vars(sys.modules.get(type(module).__module__, builtins)),
        ):
            if id(namespace) in self._seen or str(namespace.get("__name__", "torch")).split(".")[0] in (
                "torch",
                "builtins",
            ):
                continue
            self._seen.add(id(namespace))
            self._put(namespace, "len", _len)
            self._put(namespace, "isinstance", _isinstance)

    def _put(self, namespace: dict[str, Any], name: str, value: Callable[..., Any]) -> None:
        self._kept.append((namespace, name, namespace.get(name)))
        namespace[name] = value

    def _put_einops(self) -> None:
        einops = sys.modules.get("einops")
        if einops is None:
            return
        twins = {id(own): _recording(own) for name in EINOPS if (own := getattr(einops, name, None)) is not None}
        for module in list(sys.modules.values()):
            if not isinstance(module, ModuleType) or module.__name__.startswith(("einops.einops", "einops._")):
                continue
            for name, value in list(vars(module).items()):
                if id(value) in twins:
                    self._put(vars(module), name, twins[id(value)])


def _recording(function: Callable[..., Any]) -> Callable[..., Any]:
    """Becomes a node of the graph if it is given a proxy anywhere."""

    def recorded(*args: Any, **kwargs: Any) -> Any:
        proxy = _proxy_in([args, kwargs])
        if proxy is None:
            return function(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", function, args, kwargs)

    return recorded


def _proxy_in(value: Any) -> Any:
    if builtins.isinstance(value, fx.Proxy):
        return value
    if builtins.isinstance(value, dict):
        value = value.values()
    elif not builtins.isinstance(value, tuple | list):
        return None
    return next((proxy for item in value if (proxy := _proxy_in(item)) is not None), None)


def _len(value: Any) -> Any:
    if not builtins.isinstance(value, fx.Proxy):
        return len(value)
    try:
        answers = value.tracer.answers(value, len, NUM_SAMPLES)  # type: ignore[attr-defined]
    except TraceError:
        answers = []
    if answers and all(answer == answers[0] for answer in answers):
        return answers[0]
    return value.tracer.create_proxy("call_function", len, (value,), {})


def _isinstance(value: Any, kinds: Any) -> bool:
    if builtins.isinstance(value, kinds) or not builtins.isinstance(value, fx.Proxy):
        return builtins.isinstance(value, kinds)
    try:
        answers = value.tracer.answers(value, lambda result: builtins.isinstance(result, kinds))  # type: ignore[attr-defined]
    except TraceError:
        return False
    return all(answers)
