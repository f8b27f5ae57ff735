"""A copy of a model for us alone: out of its wrappers, without history, with masks and norms in plain weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from dynext.errors import SplitError, line
from dynext.graph.copying import tolerant_copy
from dynext.graph.hooks import isolate_
from dynext.graph.wrapped import unwrap_parts_, unwrapped

COMPUTE_WEIGHTS = (BasePruningMethod, SpectralNorm, WeightNorm)
"""Hooks that compute a weight before each call, and that can leave it behind as a plain one."""


def private_copy(model: nn.Module) -> nn.Module:
    """A deep copy in eval mode, out of its wrappers; the model itself is never run nor changed.

    Tensors that hang on a graph of gradients are detached. Masks (``torch.nn.utils.prune``), weight and spectral norms
    and parametrizations are worked into plain weights. What cannot be copied, such as a lock, is shared. Hooks on calls
    are still there, on copies of what they write to.

    Raises:
        SplitError: no module, weights that do not exist yet, or a module whose class cannot be copied.
    """
    model = unwrapped(model)
    if any(is_lazy(tensor) for tensor in [*model.parameters(), *model.buffers()]):
        raise SplitError(f"{type(model).__name__} has weights without a shape yet; call it once on an example first")
    try:
        with torch.no_grad():
            private, memo = tolerant_copy(model)
            unwrap_parts_(private)
            private.eval()
            for module in list(private.modules()):
                _bake(module)
            isolate_(private, memo)
    except Exception as error:
        raise SplitError(
            f"{type(model).__name__} cannot be copied ({line(error)}); build it anew and load its state_dict, or take "
            f"off it what cannot be copied"
        ) from error
    return private


def _bake(module: nn.Module) -> None:
    """Weights that are computed before each call become plain parameters."""
    if parametrize.is_parametrized(module):
        _bake_parametrized(module)
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, COMPUTE_WEIGHTS):
            name = hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name
            trained = any(
                p.requires_grad for own, p in module._parameters.items() if p is not None and own.startswith(f"{name}_")
            )
            hook.remove(module)
            del module._forward_pre_hooks[key]
            getattr(module, name).requires_grad_(trained)
            _forget_saving(module, hook)


def _bake_parametrized(module: Any) -> None:
    """By hand: torch's own removal takes the weight off the class, which the model's module still has."""
    plain: dict[str, Any] = {}
    for name, parts in module.parametrizations.items():
        value, trained = getattr(module, name).detach().clone(), [p.requires_grad for p in parts.parameters()]
        plain[name] = nn.Parameter(value, requires_grad=any(trained)) if trained else value
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module._modules["parametrizations"]
    for name, value in plain.items():
        if isinstance(value, nn.Parameter):
            module.register_parameter(name, value)
        else:
            module.register_buffer(name, value)


def _forget_saving(module: nn.Module, computing: Any) -> None:
    """Spectral norm also hangs hooks on saving and loading, which look for what is gone."""
    for hooks in (module._state_dict_hooks, module._load_state_dict_pre_hooks):
        for key, hook in list(hooks.items()):
            inner: Any = getattr(hook, "hook", hook)  # torch wraps those that take the module
            if getattr(inner, "fn", None) is computing:
                del hooks[key]
