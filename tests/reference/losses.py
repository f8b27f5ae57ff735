"""The papers' losses, slowly."""

import numpy as np


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    raised = np.exp(logits / temperature)
    return raised / raised.sum(-1, keepdims=True)


def distillation(
    student: np.ndarray, teacher: np.ndarray, temperature: float, weight: np.ndarray | None = None
) -> float:
    """Hinton et al. 2015: KL between softened answers, times tau^2, mean over samples (each times its weight)."""
    total = 0.0
    for row, (s, t) in enumerate(zip(student, teacher, strict=True)):
        p, q = softmax(t, temperature), softmax(s, temperature)
        total += float((p * (np.log(p) - np.log(q))).sum()) * (1.0 if weight is None else weight[row])
    return temperature**2 * total / len(student)


def survivor_weights(logits: np.ndarray, strength: float, thresholds: int = 20_000) -> np.ndarray:
    """``[e b]`` from ``[e b k]``: try many thresholds, and count at how many a sample has not left before an exit."""
    sure = softmax(logits).max(-1)
    share = np.ones(sure.shape)
    for e in range(1, len(sure)):
        for row in range(sure.shape[1]):
            tried = (np.arange(thresholds) + 0.5) / thresholds
            left = np.zeros(thresholds, bool)
            for earlier in range(e):
                left |= sure[earlier, row] >= tried
            share[e, row] = 1 - left.mean()
    weight = (1 - strength) + strength * share
    return weight / weight.mean(1, keepdims=True)


def cross_entropy(logits: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean([-np.log(softmax(row)[t]) for row, t in zip(logits, y, strict=True)]))


def soft_cross_entropy(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """tau^2 H(p, q), mean over samples."""
    rows = zip(student, teacher, strict=True)
    found = [-(softmax(t, temperature) * np.log(softmax(s, temperature))).sum() for s, t in rows]
    return float(temperature**2 * np.mean(found))


def multi_exit(logits: np.ndarray, temperature: float, teachers: str) -> float:
    """Phuong & Lampert, of ``[e b k]``: each exit but the last from its teachers, their mean."""
    total = 0.0
    for m in range(len(logits) - 1):
        taught_by = range(m + 1, len(logits)) if teachers == "later" else [len(logits) - 1]
        total += np.mean([soft_cross_entropy(logits[m], logits[t], temperature) for t in taught_by])
    return float(total)


def taught_by_last(logits: np.ndarray, y: np.ndarray, alpha: float, temperature: float, teacher: np.ndarray) -> float:
    """The deck's formula with its last term apart, KL(teacher || exit) softened."""
    total = cross_entropy(logits[-1], y)
    for exit_logits in logits[:-1]:
        total += (1 - alpha) * cross_entropy(exit_logits, y) + alpha * distillation(exit_logits, teacher, temperature)
    return total


def exit_probabilities(gate: np.ndarray) -> np.ndarray:
    """``[b e - 1]`` to ``[b e]``: the gate says leave, and all before it said stay."""
    rows, gates = gate.shape
    found = np.zeros((rows, gates + 1))
    for b in range(rows):
        here = 1.0
        for e in range(gates):
            found[b, e] = here * gate[b, e]
            here *= 1 - gate[b, e]
        found[b, gates] = here
    return found


def gate_targets(loss: np.ndarray, cost: np.ndarray, price: float) -> np.ndarray:
    rows, exits = loss.shape
    found = np.zeros((rows, exits - 1))
    for b in range(rows):
        for e in range(exits - 1):
            here = loss[b, e] + price * cost[e]
            found[b, e] = all(here <= loss[b, later] + price * cost[later] for later in range(e + 1, exits))
    return found


def gated(loss: np.ndarray, gate: np.ndarray, cost: np.ndarray, price: float) -> float:
    """JEI-DNN: the exits' losses where samples are sent, and the gates' binary cross-entropies."""
    sent, right = exit_probabilities(gate), gate_targets(loss, cost, price)
    total = 0.0
    for b in range(len(loss)):
        for e in range(gate.shape[1]):
            said = gate[b, e] if right[b, e] else 1 - gate[b, e]
            total += sent[b, e] * loss[b, e] - np.log(said)
    return total / len(loss)


def stacked(logits: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Zero Time Waste's mean of ``[m b k]``: log p = mean_i exp(w_i) log p_i + b."""
    total = np.zeros_like(logits[0])
    for one, w in zip(logits, weight, strict=True):
        total += np.exp(w) * np.log(softmax(one))
    return total / len(logits) + bias


def boosted(logits: np.ndarray) -> np.ndarray:
    """BoostNet's F_n = b_n + F_{n-1} / 2, of ``[e b k]``."""
    found = [logits[0]]
    for own in logits[1:]:
        found.append(own + 0.5 * found[-1])
    return np.stack(found)
