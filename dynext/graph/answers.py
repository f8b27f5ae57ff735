"""The logits in what a classifier answers: a tensor, or an object, a dict or a tuple that holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx

from dynext.errors import SplitError

LOGITS = "logits"
"""What they are called where an answer holds several tensors, as in Hugging Face's and torchvision's objects."""


def logits_of(answer: Any, kind: str) -> Any:
    """The tensor in ``answer`` called ``logits``, or its only one; an answer without any tensor is given back.

    Args:
        kind: the model's class, for the message.

    Raises:
        SplitError: several tensors, none of them called ``logits``.
    """
    if isinstance(answer, Tensor | fx.Proxy):
        return answer
    parts = {name: part for name, part in _parts(answer).items() if _holds_tensor(part)}
    if isinstance(parts.get(LOGITS), Tensor | fx.Proxy):
        return parts[LOGITS]
    if len(parts) == 1:
        return logits_of(next(iter(parts.values())), kind)
    if parts:
        raise SplitError(
            f"{kind} gives a {type(answer).__name__} of several tensors ({', '.join(parts)}), none called {LOGITS!r}; "
            f"put a module around it whose forward returns the one with the logits [b k]"
        )
    return answer


def _parts(answer: Any) -> dict[str, Any]:
    if isinstance(answer, Mapping):
        return {str(name): part for name, part in answer.items()}
    if isinstance(answer, tuple | list):
        names = getattr(answer, "_fields", None) or [f"[{index}]" for index in range(len(answer))]
        return dict(zip(names, answer, strict=True))
    slots = [name for kind in type(answer).__mro__ for name in getattr(kind, "__slots__", ())]
    named = {name: getattr(answer, name, None) for name in slots} | dict(getattr(answer, "__dict__", {}))
    logits = getattr(answer, LOGITS, None)  # a property is no attribute of its own
    return named | {LOGITS: logits} if logits is not None else named


def _holds_tensor(part: Any) -> bool:
    if isinstance(part, Tensor | fx.Proxy):
        return True
    if isinstance(part, Mapping):
        return any(map(_holds_tensor, part.values()))
    return isinstance(part, tuple | list) and any(map(_holds_tensor, part))
