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
    for b, (s, t) in enumerate(zip(student, teacher, strict=True)):
        p, q = softmax(t, temperature), softmax(s, temperature)
        total += float((p * (np.log(p) - np.log(q))).sum()) * (1.0 if weight is None else weight[b])
    return temperature**2 * total / len(student)


def survivor_weights(logits: np.ndarray, strength: float, thresholds: int = 20_000) -> np.ndarray:
    """``[e b]`` from ``[e b k]``: try many thresholds, and count at how many a sample has not left before an exit."""
    sure = softmax(logits).max(-1)
    share = np.ones(sure.shape)
    for e in range(1, len(sure)):
        for b in range(sure.shape[1]):
            tried = (np.arange(thresholds) + 0.5) / thresholds
            left = np.zeros(thresholds, bool)
            for earlier in range(e):
                left |= sure[earlier, b] >= tried
            share[e, b] = 1 - left.mean()
    weight = (1 - strength) + strength * share
    return weight / weight.mean(1, keepdims=True)


def cross_entropy(logits: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean([-np.log(softmax(sample)[t]) for sample, t in zip(logits, y, strict=True)]))


def soft_cross_entropy(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """tau^2 H(p, q), mean over samples."""
    pairs = zip(student, teacher, strict=True)
    entropies = [-(softmax(t, temperature) * np.log(softmax(s, temperature))).sum() for s, t in pairs]
    return float(temperature**2 * np.mean(entropies))


def multi_exit(logits: np.ndarray, temperature: float, teachers: str) -> float:
    """Phuong & Lampert, of ``[e b k]``: each exit but the last from its teachers, their mean."""
    total = 0.0
    for m in range(len(logits) - 1):
        taught_by = range(m + 1, len(logits)) if teachers == "later" else [len(logits) - 1]
        total += np.mean([soft_cross_entropy(logits[m], logits[t], temperature) for t in taught_by])
    return float(total)


def self_distillation(
    logits: np.ndarray, y: np.ndarray, alpha: float, temperature: float, teacher: np.ndarray
) -> float:
    """Be Your Own Teacher without its hints: cross-entropies, and KL(teacher || exit) softened."""
    total = cross_entropy(logits[-1], y)
    for exit_logits in logits[:-1]:
        total += (1 - alpha) * cross_entropy(exit_logits, y) + alpha * distillation(exit_logits, teacher, temperature)
    return total


def exit_probabilities(gate: np.ndarray) -> np.ndarray:
    """``[b e - 1]`` to ``[b e]``: the gate says leave, and all before it said stay."""
    samples, gates = gate.shape
    leaves = np.zeros((samples, gates + 1))
    for b in range(samples):
        here = 1.0
        for e in range(gates):
            leaves[b, e] = here * gate[b, e]
            here *= 1 - gate[b, e]
        leaves[b, gates] = here
    return leaves


def gate_targets(loss: np.ndarray, cost: np.ndarray, price: float) -> np.ndarray:
    samples, exits = loss.shape
    target = np.zeros((samples, exits - 1))
    for b in range(samples):
        for e in range(exits - 1):
            here = loss[b, e] + price * cost[e]
            target[b, e] = all(here <= loss[b, later] + price * cost[later] for later in range(e + 1, exits))
    return target


def gated_exit_loss(loss: np.ndarray, gate: np.ndarray, cost: np.ndarray, price: float) -> float:
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
    for head, w in zip(logits, weight, strict=True):
        total += np.exp(w) * np.log(softmax(head))
    return total / len(logits) + bias


def boosted(logits: np.ndarray) -> np.ndarray:
    """BoostNet's F_n = b_n + F_{n-1} / 2, of ``[e b k]``."""
    answers = [logits[0]]
    for own in logits[1:]:
        answers.append(own + 0.5 * answers[-1])
    return np.stack(answers)
