"""Hooks on the calls of a model's modules: those that only watch are dropped from our copy, others are refused.

Whether a hook changes something shows only when it runs. It does so once, on a copy of whatever it writes to.
"""

from __future__ import annotations

import functools
import io
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dynext.errors import SplitError
from dynext.graph.copying import Detaching, tolerantly

COLLECTORS = (list, dict, set, Tensor)
"""What a hook may write to at the top of its file."""


def isolate_(private: nn.Module, memo: dict[int, Any]) -> None:
    """Let the hooks of ``private``, a copy, write to copies of what they hold; hooks on gradients are dropped.

    Args:
        memo: what stands in the copy for which object.
    """
    with Detaching():
        for module in private.modules():
            module._backward_hooks.clear()
            module._backward_pre_hooks.clear()
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                hooks.update({key: _isolated(hook, memo) for key, hook in hooks.items()})


@contextmanager
def watching_hooks(private: nn.Module) -> Iterator[None]:
    """Run ``private`` within: afterwards the hooks that changed nothing are gone from it."""
    watched = [
        (module, hooks, key, _Watched(hook, before=hooks is module._forward_pre_hooks))
        for module in private.modules()
        for hooks in (module._forward_pre_hooks, module._forward_hooks)
        for key, hook in hooks.items()
    ]
    for _, hooks, key, watch in watched:
        hooks[key] = watch
    yield
    for module, hooks, key, watch in watched:
        if watch.changes:
            hooks[key] = watch.hook
        else:
            del hooks[key]
            _keep_computed(module, watch.computed)


def has_hooks(private: nn.Module) -> bool:
    """Whether any module in ``private`` has hooks on its calls."""
    return any(module._forward_pre_hooks or module._forward_hooks for module in private.modules())


def refuse_hooks(private: nn.Module) -> None:
    """Raises SplitError for the first hook that is left."""
    for path, module in private.named_modules():
        for hook in [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]:
            name, where = getattr(hook, "__qualname__", type(hook).__name__), path or "the model itself"
            raise SplitError(
                f"the hook {name} on {where} changes what is computed, and stages have no hooks: remove it and do its "
                f"work in forward() of a module around, or give the stages by hand (dx.graph.stages_by_hand), which "
                f"keep such hooks"
            )


class _Watched:
    """A hook, and whether it was seen to change what its module takes or gives."""

    def __init__(self, hook: Callable[..., Any], *, before: bool) -> None:
        self.hook, self.before = hook, before
        self.changes = False
        self.computed: dict[str, Tensor] = {}

    def __call__(self, module: nn.Module, *given: Any) -> Any:
        contents, held = [(tensor, tensor.clone()) for tensor in _tensors(given)], dict(vars(module))
        result = self.hook(module, *given)
        self.changes |= not all(torch.equal(tensor, content) for tensor, content in contents)
        if result is not None:
            replaced = given[-1] if not self.before else given if len(given) > 1 else given[0]
            self.changes |= not _same(_tensors(result), _tensors(replaced))
        if self.before:
            new = {name: value for name, value in vars(module).items() if value is not held.get(name)}
            self.computed |= {name: value for name, value in new.items() if isinstance(value, Tensor)}
        return result


def _keep_computed(module: nn.Module, computed: dict[str, Tensor]) -> None:
    """A weight that a hook computed before each call, out of ``weight_orig`` or the like, becomes a parameter."""
    for name, value in computed.items():
        if any(own.startswith(f"{name}_") for own in module._parameters) and value.is_floating_point():
            delattr(module, name)
            module.register_parameter(name, nn.Parameter(value.detach().clone()))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(
        one is other or (one.dtype == other.dtype and torch.equal(one, other))
        for one, other in zip(first, second, strict=True)
    )


def _isolated(hook: Any, memo: dict[int, Any]) -> Any:
    """The hook, writing to copies; what it writes to that cannot be copied stays the model's own."""
    if isinstance(hook, functools.partial):
        args, keywords = _copy(hook.args, memo), _copy(hook.keywords, memo)
        return functools.partial(_isolated(hook.func, memo), *args, **keywords)
    if not isinstance(hook, types.FunctionType):
        return hook  # an object, or a method of one: copied with the model
    cells = None
    if hook.__closure__ is not None:
        cells = tuple(types.CellType(_copy(cell.cell_contents, memo)) for cell in hook.__closure__)
    own = {name: hook.__globals__[name] for name in hook.__code__.co_names if name in hook.__globals__}
    written = {name: _copy(value, memo) for name, value in own.items() if isinstance(value, COLLECTORS)}
    defaults = _copy(hook.__defaults__, memo)
    isolated = types.FunctionType(hook.__code__, {**hook.__globals__, **written}, hook.__name__, defaults, cells)
    isolated.__kwdefaults__ = _copy(hook.__kwdefaults__, memo)
    isolated.__qualname__ = hook.__qualname__
    return isolated


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, io.IOBase):
        return io.StringIO() if isinstance(value, io.TextIOBase) else io.BytesIO()
    if isinstance(value, types.FunctionType):
        return _isolated(value, memo)
    return tolerantly(value, memo)
