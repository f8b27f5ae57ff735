"""Runs an exported dynamic net with NumPy and onnxruntime; needs nothing of dynext or torch.

    net = OnnxNet("exported")                  # the folder with policy.json beside this file
    logits, exit, macs = net.run(net.normalize(pixels))

From a shell: ``python run_onnx.py rows.npy`` prints class, exit and MACs of each row (pixels as uint8, or as the
net eats them).

Rows leave at the first exit that is sure enough of them, and only the others go on: the net's cheap rows are cheap.
Shapes: b rows, k classes. An exit whose threshold is null in policy.json is not even run.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Prediction(NamedTuple):
    """``logits [b k]``, ``exit [b]`` (from 0; the last is the full net) and ``macs [b]``, in the order of the input."""

    logits: Array
    exit: Array
    macs: Array


class OnnxNet:
    """The stages and exits of one exported net, and when to stop."""

    def __init__(self, folder: Path | str, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        import onnxruntime

        self.folder = Path(folder)
        self.card = json.loads((self.folder / "policy.json").read_text(encoding="utf-8"))
        self.policy = self.card["policy"]
        self.stages, self.exits = self.card["stages"], {exit["after"]: exit for exit in self.card["exits"]}
        self.sessions = {
            part["file"]: onnxruntime.InferenceSession(self.folder / part["file"], providers=list(providers))
            for part in (*self.stages, *self.exits.values())
        }

    def normalize(self, pixels: Array) -> Array:
        """Pixels ``[b c h w]``, uint8 or float in [0, 1], to what the net eats."""
        mean, std = (np.array(self.card["input"][key], np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
        scaled = pixels.astype(np.float32) / (255 if pixels.dtype == np.uint8 else 1)
        return (scaled - mean) / std

    def run(self, x: Array) -> Prediction:
        """Rows ``x [b ...]``, normalized, to answers; each leaves at the first exit that is sure enough of it."""
        num_rows, last = len(x), len(self.policy["threshold_e"]) - 1
        answers = Prediction(
            np.zeros((num_rows, self.card["num_classes"]), np.float32), np.full(num_rows, last), np.zeros(num_rows, int)
        )
        if not num_rows:
            return answers
        sureness = Sureness(self.policy["confidence"], last + 1, num_rows)
        rows, live, spent = np.arange(num_rows), [x], 0
        for s, stage in enumerate(self.stages):
            live = self._run(stage, live)
            spent += stage["macs"]
            e = self._exit_after(s)
            if e is not None:
                exit = self.exits[s]
                (logits,) = self._run(exit, [live[stage["tap"]]])
                spent += exit["macs"]
                sure = sureness.step(logits / np.float32(self.policy["temperature_e"][e]), rows)
                leaves = sure >= self.policy["threshold_e"][e]  # NaN reaches no threshold
                _write(answers, rows[leaves], logits[leaves], e, spent)
                rows, live = rows[~leaves], [tensor[~leaves] for tensor in live]
                if not len(rows):
                    return answers
        _write(answers, rows, live[0], last, spent)
        return answers

    def _exit_after(self, s: int) -> int | None:
        """The exit that stands after stage ``s`` and is switched on."""
        e = self.exits[s]["exit"] if s in self.exits else None
        return None if e is None or self.policy["threshold_e"][e] is None else int(e)

    def _run(self, part: dict[str, Any], inputs: list[Array]) -> list[Array]:
        session = self.sessions[part["file"]]
        names = [given.name for given in session.get_inputs()]
        return list(session.run(None, dict(zip(names, inputs, strict=True))))


def _write(answers: Prediction, rows: Array, logits: Array, exit: int, spent: int) -> None:
    answers.logits[rows], answers.exit[rows], answers.macs[rows] = logits, exit, spent


class Sureness:
    """How sure an exit is of each row, in [0, 1]; NaN for rows whose logits make no sense."""

    def __init__(self, measure: str, num_exits: int, num_rows: int) -> None:
        self.measure, self.num_exits = measure, num_exits
        self.last, self.streak = np.full(num_rows, -1), np.zeros(num_rows, int)

    def step(self, logits: Array, rows: Array) -> Array:
        """Of the surviving ``rows`` (ids), by the logits ``[b k]`` of the next exit, divided by its temperature."""
        if self.measure == "patience":
            return self._patience(logits, rows)
        with np.errstate(invalid="ignore"):
            shifted = np.exp(logits - logits.max(1, keepdims=True))
            probability = shifted / shifted.sum(1, keepdims=True)
        if self.measure == "max_probability":
            return probability.max(1)
        if self.measure == "margin":
            top = np.sort(probability, 1)
            return top[:, -1] - top[:, -2]
        if self.measure == "entropy":
            positive = np.where(probability > 0, probability, 1)  # 0 log 0 is 0
            entropy = -(positive * np.log(positive)).sum(1)
            sure = np.clip(1 - entropy / math.log(logits.shape[1]), 0, 1)
            return np.where(np.isnan(probability).any(1), np.nan, sure)
        raise ValueError(f"unknown confidence {self.measure!r} in policy.json")

    def _patience(self, logits: Array, rows: Array) -> Array:
        """Equal consecutive answers, this exit's included, divided by the number of exits."""
        sense = np.isfinite(logits.max(1))
        answer = np.where(sense, logits.argmax(1), -1)
        self.streak[rows] = np.where(answer == self.last[rows], self.streak[rows] + 1, 1)
        self.last[rows] = answer
        return np.where(sense, self.streak[rows] / self.num_exits, np.nan)


def main(path: str) -> None:
    """Print class, exit and MACs of every row of a ``.npy`` file."""
    net = OnnxNet(Path(__file__).parent)
    x = np.load(path)
    found = net.run(net.normalize(x) if x.dtype == np.uint8 else x)
    names = net.card["class_names"]
    for row, (logits, exit, macs) in enumerate(zip(*found, strict=True)):
        answer = int(logits.argmax())
        print(f"row {row}: {names[answer] if names else answer}  (exit {exit}, {macs:,} MACs)")


if __name__ == "__main__":
    main(sys.argv[1])
