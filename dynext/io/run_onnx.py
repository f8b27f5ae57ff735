"""Runs an exported dynamic net with NumPy and onnxruntime alone, without dynext or torch.

    net = OnnxNet("exported")                  # the folder with policy.json beside this file
    logits, exit, macs = net.run(net.normalize(pixels))

From a shell: ``python run_onnx.py samples.npy`` prints class, exit and MACs of each sample (pixels as uint8, or
normalized floats).

A sample skips the stages that its gates say and leaves at the first exit that is sure enough of it; only samples that
have not left are computed further. An exit or a gate whose threshold is null in policy.json is not run at all.
Shapes: b samples, k classes.
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
            for part in (*self.stages, *self.exits.values(), *self._gate_parts())
        }
        expected = self.sessions[self.stages[0]["file"]].get_inputs()[0].type
        self.dtype = np.float16 if "float16" in expected else np.float32

    def normalize(self, pixels: Array) -> Array:
        """Pixels ``[b c h w]``, uint8 or float in [0, 1], to what the model expects."""
        mean, std = (np.array(self.card["input"][key], np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
        scaled = pixels.astype(np.float32) / (255 if pixels.dtype == np.uint8 else 1)
        return (scaled - mean) / std

    def run(self, x: Array) -> Prediction:
        """Samples ``x [b ...]``, normalized, to answers; each leaves at the first exit that is sure enough of it."""
        if x.dtype.kind != "f":
            raise ValueError(f"samples are {x.dtype}; give normalized floats, normalize(pixels) makes them")
        x = x.astype(self.dtype, copy=False)
        n, last = len(x), len(self.policy["threshold_e"]) - 1
        answers = Prediction(np.zeros((n, self.card["num_classes"]), np.float32), np.full(n, last), np.zeros(n, int))
        if not n:
            return answers
        sureness = Sureness(self.policy["confidence"], last + 1, n)
        gates = GateState(self, x)
        ids, live, tap, spent = np.arange(n), [x], x, np.full(n, gates.start_macs)
        for s, stage in enumerate(self.stages):
            runs = gates.decide(s, tap)
            live = self._run_for(runs, stage, live)
            spent = spent + gates.macs(s) + runs * stage["macs"]
            tap = live[stage["tap"]]
            e = self._exit_after(s)
            if e is not None:
                exit = self.exits[s]
                (logits,) = self._run(exit, [live[stage["tap"]]])
                spent += exit["macs"]
                sure = sureness.step(logits / np.float32(self.policy["temperature_e"][e]), ids)
                leaves = sure >= self.policy["threshold_e"][e]  # NaN reaches no threshold
                _write(answers, ids[leaves], logits[leaves], e, spent[leaves])
                ids, live, spent = ids[~leaves], [tensor[~leaves] for tensor in live], spent[~leaves]
                tap = live[stage["tap"]]
                gates.stay(~leaves)
                if not len(ids):
                    return answers
        _write(answers, ids, live[0], last, spent)
        return answers

    def _exit_after(self, s: int) -> int | None:
        """The exit that stands after stage ``s`` and is switched on."""
        e = self.exits[s]["exit"] if s in self.exits else None
        return None if e is None or self.policy["threshold_e"][e] is None else int(e)

    def _gate_parts(self) -> list[dict[str, Any]]:
        gates = self.card.get("gates") or {"start": None, "files": []}
        return [{"file": file} for file in (gates["start"], *gates["files"]) if file is not None]

    def _run_for(self, runs: Array, stage: dict[str, Any], live: list[Array]) -> list[Array]:
        """The stage for the samples that run it; the others keep their live tensors."""
        if runs.all():
            return self._run(stage, live)
        if not runs.any():
            return live
        kept = [tensor.copy() for tensor in live]
        for tensor, out in zip(kept, self._run(stage, [tensor[runs] for tensor in live]), strict=True):
            tensor[runs] = out
        return kept

    def _run(self, part: dict[str, Any], inputs: list[Array]) -> list[Array]:
        session = self.sessions[part["file"]]
        names = [given.name for given in session.get_inputs()]
        return list(session.run(None, dict(zip(names, inputs, strict=True))))


def _write(answers: Prediction, ids: Array, logits: Array, exit: int, spent: Array) -> None:
    answers.logits[ids], answers.exit[ids], answers.macs[ids] = logits, exit, spent


class GateState:
    """What the gates remember of the samples ``x`` of one run; where none is on, every stage runs for every sample."""

    def __init__(self, net: OnnxNet, x: Array) -> None:
        self.net, self.card = net, net.card.get("gates") or {"at": [], "start": None, "memory": [], "start_macs": 0}
        keep = net.policy.get("keep_g") or [None] * len(self.card["at"])
        self.keep = {s: (g, t) for g, (s, t) in enumerate(zip(self.card["at"], keep, strict=True)) if t is not None}
        self.start_macs = self.card["start_macs"] if self.keep else 0
        self.memory = [np.zeros((len(x), size), x.dtype) for size in self.card["memory"]]
        self.at_once = bool(self.card["start"]) and bool(self.keep)
        if self.at_once:
            self.memory = net._run({"file": self.card["start"]}, [x])

    def decide(self, s: int, tap: Array) -> Array:
        """Which samples run stage ``s``, by the tensor that goes into it; NaN runs."""
        if s not in self.keep:
            return np.ones(len(tap), bool)
        g, threshold = self.keep[s]
        if self.at_once:
            logits = self.memory[0][:, g]
        else:
            logits, *self.memory = self.net._run({"file": self.card["files"][g]}, [tap, *self.memory])
        if threshold in (0, 1):
            limit = -math.inf if threshold == 0 else math.inf
        else:
            limit = math.log(threshold) - math.log1p(-threshold)
        return ~(logits < limit)

    def macs(self, s: int) -> int:
        """MACs per sample of the gate of stage ``s``."""
        return int(self.card["macs"][self.keep[s][0]]) if s in self.keep else 0

    def stay(self, staying: Array) -> None:
        """Forget all samples but those at ``staying``."""
        self.memory = [kept[staying] for kept in self.memory]


class Sureness:
    """How sure an exit is of each sample, in [0, 1]; NaN for samples whose logits are NaN or infinite."""

    def __init__(self, measure: str, num_exits: int, num_samples: int) -> None:
        self.measure, self.num_exits = measure, num_exits
        self.last, self.streak = np.full(num_samples, -1), np.zeros(num_samples, int)

    def step(self, logits: Array, ids: Array) -> Array:
        """Of the samples ``ids`` that are left, by the next exit's logits ``[b k]``, divided by its temperature."""
        if self.measure == "patience":
            return self._patience(logits, ids)
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

    def _patience(self, logits: Array, ids: Array) -> Array:
        """Equal consecutive answers, this exit's included, divided by the number of exits."""
        finite = np.isfinite(logits.max(1))
        answer = np.where(finite, logits.argmax(1), -1)
        self.streak[ids] = np.where(answer == self.last[ids], self.streak[ids] + 1, 1)
        self.last[ids] = answer
        return np.where(finite, self.streak[ids] / self.num_exits, np.nan)


def main(path: str) -> None:
    """Print class, exit and MACs of every sample of a ``.npy`` file."""
    net = OnnxNet(Path(__file__).parent)
    x = np.load(path)
    prediction = net.run(net.normalize(x) if x.dtype == np.uint8 else x)
    names = net.card["class_names"]
    for i, (logits, exit, macs) in enumerate(zip(*prediction, strict=True)):
        answer = int(logits.argmax())
        print(f"sample {i}: {names[answer] if names else answer}  (exit {exit}, {macs:,} MACs)")


if __name__ == "__main__":
    main(sys.argv[1])
