"""Pixels, and nets' words for them, that the tests of data share."""

import numpy as np

from dynext.types import InputSpec

GRAY = InputSpec(shape=(1, 6, 5), mean=(0.5,), std=(0.25,))
COLOR = InputSpec(shape=(3, 6, 5), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def some_pixels(n: int = 7, shape: tuple[int, ...] = (6, 5, 3)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)
