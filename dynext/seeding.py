"""Randomness is an argument: the global generator is used for a moment and given back as it was.

torch has one global generator for all threads. Our own verbs take turns at it; where nothing is drawn, it is not
touched.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Generator
from torch.utils._python_dispatch import TorchDispatchMode

_ONE_AT_A_TIME = threading.RLock()
"""Two blocks that overlap would give back each other's state."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block whose global randomness (layer initialization) follows ``seed``; the caller's state comes back."""
    with _ONE_AT_A_TIME, torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def seeded_if_drawn(seed: int) -> Iterator[None]:
    """As `seeded`, from the first random operation on: a block without one leaves the generator to other threads."""
    with ExitStack() as stack, _AtFirstDraw(stack, seed):
        yield


class _AtFirstDraw(TorchDispatchMode):
    def __init__(self, stack: ExitStack, seed: int) -> None:
        super().__init__()
        self.stack, self.seed, self.drawn = stack, seed, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.drawn and _draws(func, args, kwargs or {}):
            self.drawn = True
            self.stack.enter_context(seeded(self.seed))
        return func(*args, **(kwargs or {}))


def _draws(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation is random; attention is said to be, and without dropout is not."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    given = dict(zip([argument.name for argument in func._schema.arguments], args, strict=False)) | kwargs
    if given.get("generator") is not None:
        return False
    return "scaled_dot_product" not in func.name() or bool(given.get("dropout_p", 0.0))


def generator(seed: int) -> Generator:
    """A CPU generator of its own for one verb."""
    return Generator().manual_seed(seed)
