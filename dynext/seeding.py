"""Randomness is an argument: the global generator is used for a moment and given back as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block whose global randomness (layer initialization) follows ``seed``; the caller's state comes back."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def generator(seed: int) -> Generator:
    """A CPU generator of its own for one verb."""
    return Generator().manual_seed(seed)
