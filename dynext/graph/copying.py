"""Deep copies of modules that ``copy.deepcopy`` refuses: with tensors that have a history, locks, files, generators."""

from __future__ import annotations

import copy
import functools
import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def tolerant_copy(model: nn.Module) -> tuple[nn.Module, dict[int, Any]]:
    """A deep copy, and what stands in it for which object (by ``id``, as ``copy.deepcopy`` has it).

    What cannot be copied is shared; an object is copied around such a part.
    """
    memo: dict[int, Any] = {}
    with Detaching():
        return tolerantly(model, memo), memo


def copy_module(module: nn.Module, memo: dict[int, Any]) -> Any:
    """As `tolerant_copy`, in the course of a ``copy.deepcopy``."""
    with Detaching():
        return _module(module, memo)


class Detaching(TorchFunctionMode):
    """Within it a tensor that was computed from weights is copied without its history, instead of refused."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def tolerantly(value: Any, memo: dict[int, Any]) -> Any:
    """A deep copy of ``value`` whose uncopyable parts are the same objects as in it."""
    if id(value) in memo:
        return memo[id(value)]
    trial = dict(memo)  # a copy that fails leaves half of itself in it
    try:
        copied = copy.deepcopy(value, trial)
    except Exception:
        copied = memo[id(value)] = _in_parts(value, memo)
        kept_alive = [value]
    else:
        kept_alive = trial.pop(
            id(trial), []
        )  # else whatever gets the address of `trial` next would stand for this list
        memo.update(trial)
    memo.setdefault(id(memo), []).extend(kept_alive)
    return copied


def _module(module: nn.Module, memo: dict[int, Any]) -> Any:
    """A module that has or holds what cannot be copied."""
    twin = memo[id(module)] = type(module).__new__(type(module))
    for name, value in vars(module).items():
        if name != "_compiled_call_impl":  # made anew where it is wanted, as torch has it
            vars(twin)[name] = tolerantly(value, memo)
    return twin


def _in_parts(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, nn.Module):
        return _module(value, memo)
    if isinstance(value, torch.Generator):
        return torch.Generator(value.device).set_state(value.get_state())
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, tolerantly(value.__self__, memo))
    if isinstance(value, functools.partial):
        args, kwargs = tolerantly(value.args, memo), tolerantly(value.keywords, memo)
        return functools.partial(tolerantly(value.func, memo), *args, **kwargs)
    if isinstance(value, dict | list):
        return _container(value, memo)
    if type(value) in (tuple, set, frozenset):
        return type(value)(tolerantly(item, memo) for item in value)
    return _object(value, memo)


def _container(value: Any, memo: dict[int, Any]) -> Any:
    twin = memo[id(value)] = copy.copy(value)
    if isinstance(twin, list):
        twin[:] = [tolerantly(item, memo) for item in value]
    else:
        for key, item in value.items():
            twin[key] = tolerantly(item, memo)
    return twin


def _object(value: Any, memo: dict[int, Any]) -> Any:
    """An object of a plain class; one that lives outside of Python, such as a lock, is shared."""
    kind: Any = type(value)
    own = [name for name in ("__reduce__", "__reduce_ex__") if getattr(kind, name) is not getattr(object, name)]
    if own or not hasattr(value, "__dict__") or isinstance(value, type | types.ModuleType | types.FunctionType):
        return value
    try:
        twin = memo[id(value)] = copy.copy(value)
    except Exception:
        return value
    vars(twin).update({name: tolerantly(item, memo) for name, item in vars(value).items()})
    return twin
