"""Results that functions keep from one call to the next must not be those of tensors without content.

A model may keep what it computes once in a ``functools.lru_cache`` (BEiT its table of relative positions), which copies
of the model share. What such a function gives for a tensor without content would be handed out later, to the trace and
to the user's own model.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

LIBRARIES = ("torch", "functools", "numpy", "typing", "re", "sympy")
"""Top-level packages whose caches hold no model's tensors."""


class Memoized:
    """The ``lru_cache`` functions of this process, as they are when this is made."""

    def __init__(self) -> None:
        kept = functools._lru_cache_wrapper
        everywhere = [each for each in gc.get_objects() if type(each) is kept]
        self._functions: list[Any] = [each for each in everywhere if _package(each) not in LIBRARIES]

    @contextmanager
    def forgotten(self, modules: Iterable[nn.Module] = ()) -> Iterator[None]:
        """What is computed inside is not kept, by functions that ``modules`` make for themselves neither."""
        before = [function.cache_info().misses for function in self._functions]
        try:
            yield
        finally:
            for function, misses in zip(self._functions, before, strict=True):
                if function.cache_info().misses != misses:
                    function.cache_clear()
            for value in [value for module in modules for value in vars(module).values()]:
                if type(value) is functools._lru_cache_wrapper and value not in self._functions:
                    value.cache_clear()


def _package(function: Any) -> str:
    return str(getattr(function, "__module__", "")).partition(".")[0]
