"""SkipNet's and BlockDrop's gates, slowly: one sample at a time, from a state dict of NumPy arrays."""

import numpy as np

State = dict[str, np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def convolved(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """One map ``[c h w]`` with ``weight [d c k k]``, padding such that stride 1 keeps the size."""
    size = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2))
    height, width = (-(-side // stride) for side in x.shape[1:])
    out = np.zeros((len(weight), height, width))
    for i in range(height):
        for j in range(width):
            window = padded[:, stride * i : stride * i + size, stride * j : stride * j + size]
            out[:, i, j] = [(window * w).sum() for w in weight]
    return out


def normalized(x: np.ndarray, state: State, name: str) -> np.ndarray:
    """BatchNorm on its running statistics."""
    mean, var, scale, shift = (
        state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * scale + shift


def conv_bn_relu(x: np.ndarray, state: State, conv: str, norm: str, stride: int) -> np.ndarray:
    return np.maximum(normalized(convolved(x, state[f"{conv}.weight"], stride), state, norm), 0)


def max_pooled(x: np.ndarray) -> np.ndarray:
    """Windows of two by two, those at the border cut off where the size is odd."""
    _, height, width = x.shape
    return np.array(
        [[x[:, i : i + 2, j : j + 2].max((1, 2)) for j in range(0, width, 2)] for i in range(0, height, 2)]
    ).transpose(2, 0, 1)


def linear(x: np.ndarray, state: State, name: str) -> np.ndarray:
    return state[f"{name}.weight"] @ x + state[f"{name}.bias"]


def probability_to_run(skip_run: np.ndarray) -> float:
    """Softmax over the two scores, the second one's share."""
    raised = np.exp(skip_run - skip_run.max())
    return float(raised[1] / raised.sum())


def feedforward(tap: np.ndarray, state: State, variant: str) -> float:
    """FFGate-I or -II of one map ``[c h w]``: the probability to run. Wang et al., ECCV 2018, figure 3a and b."""
    first = 0
    if variant == "I":
        tap = conv_bn_relu(max_pooled(tap), state, "1", "2", 1)
        first = 4
    tap = conv_bn_relu(tap, state, f"{first}", f"{first + 1}", 2)
    return probability_to_run(linear(tap.mean((1, 2)), state, f"{first + 5}.scores"))


def feedforward_tokens(tap: np.ndarray, state: State) -> float:
    """Ours for tokens ``[t d]``: mean, LayerNorm, linear, ReLU, linear."""
    mean = tap.mean(0)
    normal = (mean - mean.mean()) / np.sqrt(mean.var() + 1e-5) * state["1.weight"] + state["1.bias"]
    return probability_to_run(linear(np.maximum(linear(normal, state, "2"), 0), state, "4.scores"))


def recurrent(taps: list[np.ndarray], state: State) -> list[float]:
    """The shared LSTM over the taps of one sample ``[c h w]``: the probability to run each stage."""
    size = state["decide.weight"].shape[1]
    hidden, cell = np.zeros(size), np.zeros(size)
    run = []
    for g, tap in enumerate(taps):
        embedded = linear(tap.mean((1, 2)), state, f"embed.{g}.1")
        gates = state["cell.weight_ih"] @ embedded + state["cell.bias_ih"]
        gates = gates + state["cell.weight_hh"] @ hidden + state["cell.bias_hh"]
        take, forget, new, give = np.split(gates, 4)
        cell = sigmoid(forget) * cell + sigmoid(take) * np.tanh(new)
        hidden = sigmoid(give) * np.tanh(cell)
        run.append(float(sigmoid(linear(hidden, state, "decide"))[0]))
    return run


def policy(x: np.ndarray, state: State) -> np.ndarray:
    """BlockDrop's policy network on one sample ``[c h w]``: the probability to run each stage ``[g]``."""
    x = conv_bn_relu(x, state, "conv", "norm", 1)
    for block, stride in enumerate((1, 2, 2)):
        name = f"blocks.{block}"
        out = conv_bn_relu(x, state, f"{name}.conv1", f"{name}.norm1", stride)
        out = normalized(convolved(out, state[f"{name}.conv2.weight"], 1), state, f"{name}.norm2")
        shortcut = x if stride == 1 else convolved(x, state[f"{name}.shortcut.weight"], stride)
        x = np.maximum(out + shortcut, 0)
    return sigmoid(linear(x.mean((1, 2)), state, "decide"))
