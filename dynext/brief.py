"""Objects in a line or two: what a prompt shows of results that hold tensors, nets and long records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

MOST_ITEMS, MOST_TEXT, MOST_IN_ALL = 8, 120, 1000
"""Longer tuples and texts are cut in the middle, and so is what comes together."""


def short_repr(self: Any) -> str:
    """A dataclass's ``__repr__``: its fields, tensors by shape and type, nets by name, texts and lists cut."""
    shown = ", ".join(f"{one.name}={brief(getattr(self, one.name))}" for one in fields(self) if one.repr)
    return cut(f"{type(self).__name__}({shown})", MOST_IN_ALL)


def brief(value: object) -> str:
    """One value in few words.

    >>> brief([1.23456789] * 20), brief("x" * 3), brief({"a": 1})
    ('[1.235, 1.235, ... 20 in all]', "'xxx'", '{a}')
    """
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, nn.Module):
        return type(value).__name__
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return repr(cut(value, MOST_TEXT))
    if isinstance(value, Mapping):
        return "{" + cut(", ".join(map(str, value)), MOST_TEXT) + "}"
    if isinstance(value, list | tuple):
        few = value if len(value) <= MOST_ITEMS else value[:2]
        told = [brief(item) for item in few] + ([] if few is value else [f"... {len(value)} in all"])
        opening, closing = "[]" if isinstance(value, list) else "()"
        return opening + cut(", ".join(told), 3 * MOST_TEXT) + closing
    if is_dataclass(value) and not isinstance(value, type):
        return cut(repr(value), 2 * MOST_TEXT)
    return cut(repr(value), MOST_TEXT)


def cut(text: str, most: int) -> str:
    """``text`` with dots for its middle where it is longer than ``most``."""
    return text if len(text) <= most else f"{text[: most * 2 // 3]} ... {text[len(text) - most // 4 :]}"
