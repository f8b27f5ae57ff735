"""8-bit layers, slowly: Jacob et al., CVPR 2018, whole numbers all the way, one scale at the end."""

import numpy as np


def quantized_input(x: np.ndarray, scale: float, zero: int) -> np.ndarray:
    return np.clip(np.round(x.astype(np.float32) / np.float32(scale)) + zero, 0, 255).astype(np.int64)


def quantized_weight(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers up to 63, and the step of each output channel."""
    flat = weight.reshape(len(weight), -1)
    step = np.abs(flat).max(1) / 63
    return np.round(flat / step[:, None]).astype(np.int64).reshape(weight.shape), step


def convolution(  # noqa: PLR0913  what a convolution in 8 bits is made of
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, scale: float, zero: int, stride: int, padding: int,
    groups: int, relu: bool,
) -> np.ndarray:  # fmt: skip
    whole, step = quantized_weight(weight)
    q = np.pad(quantized_input(x, scale, zero) - zero, ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2))
    out_c, in_c, kernel, _ = weight.shape
    height, width = ((side - kernel) // stride + 1 for side in q.shape[2:])
    out = np.zeros((len(x), out_c, height, width))
    for c in range(out_c):
        first = (c // (out_c // groups)) * in_c
        for i in range(height):
            for j in range(width):
                window = q[:, first : first + in_c, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
                out[:, c, i, j] = (window * whole[c]).sum((1, 2, 3)) * scale * step[c] + bias[c]
    return np.maximum(out, 0) if relu else out


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, scale: float, zero: int) -> np.ndarray:
    whole, step = quantized_weight(weight)
    return (quantized_input(x, scale, zero) - zero) @ whole.T * scale * step + bias


def squared_error(value: np.ndarray, scale: float, zero: int) -> float:
    kept = (quantized_input(value, scale, zero) - zero) * scale
    return float(((kept - value) ** 2).sum())
