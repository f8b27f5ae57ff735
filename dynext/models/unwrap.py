"""Weights by name out of what training scripts put around them: epochs, optimizers, averages, whole modules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

AVERAGED = (
    "state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "model_state_ema", "model_ema_state_dict",
    "params_ema", "net_ema", "ema",
)  # fmt: skip
"""Where scripts keep the running average of the weights, which is what they test and publish."""
WRAPPERS = (
    "state_dict", "model_state_dict", "model_state", "model", "net_state_dict", "net_state", "net", "network", "params",
    "weights", "module",
)  # fmt: skip
"""Where they keep the weights themselves."""
WRAPPING = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of a name that DataParallel, torch.compile and others put in, anywhere in it."""
_ASIDE = re.compile(
    r"(.*optim(izer)?s?|opt|.*schedulers?|.*scaler|loops|callbacks|hyper_parameters|hparams.*|args|config|cfg|criterion"
    r"|loss(es)?|amp|.*rng.*|metrics?|history|meta)(_states?|_state_dict)?"
)
"""Keys beside the weights whose tensors are no weights."""


class Weights(dict[str, Tensor]):
    """Tensors by name, and what was left out or decided on the way to them, for people to read."""

    def __init__(self, tensors: Mapping[str, Tensor], notes: Iterable[str] = ()) -> None:
        super().__init__(tensors)
        self.notes = tuple(notes)


def named_tensors(content: Any) -> Weights:
    """The weights in the content of a checkpoint; none where it holds none.

    Of the keys that are known to wrap weights one is taken, the averaged ones (EMA) before others if none of their
    tensors is missing. What lies under other keys keeps them before its names: a net says later which names are its.
    """
    if "_parameters" in vars_of(content):
        return Weights(dict(_of_module(content, "")), ["read out of a whole module"])
    if not isinstance(content, Mapping):
        return Weights({})
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    inner = {key: named_tensors(value) for key, value in named.items() if not _ASIDE.fullmatch(key)}
    inner = {key: weights for key, weights in inner.items() if weights}
    key, note = _chosen(inner)
    if key is not None:
        return Weights(inner[key], [*note, *inner[key].notes])
    direct = {key: value for key, value in named.items() if isinstance(value, Tensor)}
    others = [key for key, value in named.items() if key not in direct and key not in inner] if direct else []
    joined = {f"{key}.{name}": value for key, weights in inner.items() for name, value in weights.items()}
    return Weights({**direct, **joined}, [f"ignored {some(others)}"] if others else [])


def vars_of(content: Any) -> dict[str, Any]:
    """An object's attributes; of one without any, none."""
    return getattr(content, "__dict__", {})


def bare_name(name: str) -> str:
    """``name`` without the parts that wrappers put in.

    >>> bare_name("backbone._orig_mod.conv.module.weight")
    'backbone.conv.weight'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPING) or name


def some(names: list[str], most: int = 4) -> str:
    """The first few of ``names``, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _of_module(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """As `torch.nn.Module.state_dict` names them, from the attributes that a module was saved with."""
    held = vars_of(module)
    left_out = held.get("_non_persistent_buffers_set") or ()
    buffers = {name: value for name, value in (held.get("_buffers") or {}).items() if name not in left_out}
    for name, value in {**(held.get("_parameters") or {}), **buffers}.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value.detach()
    for name, child in (held.get("_modules") or {}).items():
        yield from _of_module(child, f"{prefix}{name}.")


def _chosen(inner: Mapping[str, Weights]) -> tuple[str | None, list[str]]:
    """The key to take, if one is known, and what is to be said of that."""
    averaged = next((key for key in AVERAGED if key in inner), None)
    plain = next((key for key in WRAPPERS if key in inner), None)
    if averaged is None or plain is None:
        key = averaged or plain
        return key, [f"took the averaged weights ({key})"] if averaged else []
    lacking = sorted({bare_name(name) for name in inner[plain]} - {bare_name(name) for name in inner[averaged]})
    if lacking:
        return plain, [f"took {plain}, not the averaged weights ({averaged}), which lack {some(lacking)}"]
    return averaged, [f"took the averaged weights ({averaged}), not {plain}"]
