"""SCAN's attention module, slowly: Zhang et al., NeurIPS 2019."""

import numpy as np


def convolution(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """3x3, stride 2, padding 1, of one map ``[c h w]`` with ``weight [d c 3 3]``."""
    _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(weight), -(-height // 2), -(-width // 2)))
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            window = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            out[:, i, j] = [(window * w).sum() for w in weight]
    return out


def transposed(x: np.ndarray, weight: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Every pixel of ``x [d h w]`` paints its 3x3 patch, two from the next; ``weight [d c 3 3]``, cut to size."""
    depth, height, width = x.shape
    canvas = np.zeros((weight.shape[1], 2 * height + 3, 2 * width + 3))
    for d in range(depth):
        for i in range(height):
            for j in range(width):
                canvas[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += x[d, i, j] * weight[d]
    return canvas[:, 1 : 1 + size[0], 1 : 1 + size[1]]


def normalized(x: np.ndarray, mean: np.ndarray, var: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """BatchNorm on its running statistics."""
    m, v, a, b = (c[:, None, None] for c in (mean, var, scale, shift))
    return (x - m) / np.sqrt(v + 1e-5) * a + b


def attended(x: np.ndarray, down: np.ndarray, norm1: tuple, up: np.ndarray, norm2: tuple) -> np.ndarray:
    """x times sigmoid(BN(up(relu(BN(down(x))))))."""
    narrow = np.maximum(normalized(convolution(x, down), *norm1), 0)
    wide = normalized(transposed(narrow, up, x.shape[1:]), *norm2)
    return x / (1 + np.exp(-wide))
