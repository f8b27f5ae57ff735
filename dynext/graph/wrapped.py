"""The model inside of what training puts around it: data parallelism, running averages, ``torch.compile``."""

from __future__ import annotations

from typing import Any

from torch import nn

from dynext.errors import SplitError

INNER = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "OptimizedModule": "_orig_mod",
    "ModelEma": "ema",
    "ModelEmaV2": "module",
    "ModelEmaV3": "module",
    "EMA": "ema_model",
    "LogitsOnly": "model",
}
"""Classes that wrap a model, by name (torch, timm, ema-pytorch, dynext), and the attribute in which they hold it."""


def unwrapped(model: Any) -> nn.Module:
    """The innermost model of nested wrappers, and the model itself where there is none.

    Raises:
        SplitError: not a module.
    """
    while (inner := _inner(model)) is not None:
        model = inner
    if not isinstance(model, nn.Module):
        raise SplitError(f"the model is a {type(model).__name__}; give a torch.nn.Module")
    return model


def unwrap_parts_(private: nn.Module) -> None:
    """Take the wrappers away from around modules inside ``private``."""
    for module in list(private.modules()):
        for name, part in list(module._modules.items()):
            if part is not None and _inner(part) is not None:
                module._modules[name] = unwrapped(part)


def _inner(model: Any) -> nn.Module | None:
    names = [INNER[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in INNER]
    inner = getattr(model, names[0], None) if names else None
    return inner if isinstance(inner, nn.Module) else None
