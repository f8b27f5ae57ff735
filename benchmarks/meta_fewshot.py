"""Few-shot learning per exit and under a budget: a four-exit net, meta-trained on Omniglot small1, tested on small2.

Every method gets the same net and the same seconds: heads-only meta-learning, prototypes at every exit, joint training
on all training classes and Meta-GF fusion, both followed by class means or by class means and steps. Thresholds come
from episodes of the training classes. Then the open claim: a held-out exit after 1, 3 and 5 steps from a meta-learned
start and from joint training (``recipes/meta_held_out_exit.py``).

    python benchmarks/meta_fewshot.py --root FOLDER [--quick] [--json FILE]

A run that was stopped goes on from its JSON file.
"""

from __future__ import annotations

import argparse
import json
import runpy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from harness import figure, parser, table, write
from torch import Tensor, nn

import dynext as dx

TASKS = {"5-way 1-shot": (5, 1), "5-way 5-shot": (5, 5), "20-way 1-shot": (20, 1)}
METHODS = ("heads", "maml", "prototypes", "joint", "joint + steps", "fusion", "fusion + steps")
BUDGET = 0.6


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all methods share."""

    taught: dx.data.Rows
    tested: dx.data.Rows
    seconds: float
    episodes: int
    channels: int
    batch: int
    seed: int

    def net(self, classes: int) -> dx.DynamicNet:
        with dx.seeded(self.seed):
            model = Conv4(self.channels, classes).eval()
        staged = dx.split(model, torch.zeros(1, *self.taught.shape), after=["block1", "block2", "block3"])
        return dx.attach(staged, dx.conv_heads(classes, hidden=self.channels), seed=self.seed)

    def drawn(self, rows: dx.data.Rows, way: int, shot: int, seed: int) -> dx.Episodes:
        return dx.Episodes(rows=rows, way=way, shot=shot, query=min(15, 20 - shot), seed=seed)


class Conv4(nn.Module):
    """Four blocks of a 3x3 convolution, BatchNorm and ReLU, halved by pooling, and a linear layer on the mean."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        sizes = [1, channels, channels, channels, channels]
        for i in range(4):
            conv = nn.Conv2d(sizes[i], sizes[i + 1], 3, 1, 1)
            block = nn.Sequential(conv, nn.BatchNorm2d(sizes[i + 1]), nn.ReLU(), nn.MaxPool2d(2))
            self.add_module(f"block{i + 1}", block)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.block4(self.block3(self.block2(self.block1(x)))).mean((2, 3)))


def in_time(seconds: float, train: Callable[[int], Any], probe: int) -> tuple[Any, int, float]:
    """``train(steps)`` with as many steps as fit: a short run says how long one takes."""
    train(2)  # what is done once does not count
    begun = time.perf_counter()
    train(probe)
    steps = max(probe, round(seconds * probe / (time.perf_counter() - begun)))
    begun = time.perf_counter()
    return train(steps), steps, time.perf_counter() - begun


def start(method: str, way: int, shot: int, given: Setting) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """What the method trains, how it then learns an episode, and what the training took."""
    drawn = given.drawn(given.taught, way, shot, seed=0)
    classes = int(given.taught.y.max()) + 1
    how: dict[str, Any] = {}

    def config(steps: int) -> dx.FitConfig:
        return dx.FitConfig(steps=steps, lr=2e-3, seed=given.seed, progress=False)

    if method in ("heads", "maml", "prototypes"):
        changes = {} if method == "prototypes" else {"steps": 3, "lr": 0.4 if method == "maml" else 0.1}
        inner = dx.InnerLoop.of(method, **changes)
        net = given.net(way)
        train = lambda steps: dx.meta_train(net, drawn, config(steps), inner=inner, batch=given.batch)  # noqa: E731
    else:
        net = given.net(classes)
        verb = dx.train_jointly if method.startswith("joint") else dx.meta_fusion
        train = lambda steps: verb(net, given.taught, config(steps), batch_size=64)  # noqa: E731
        how = {"method": "head", "steps": 5, "lr": 0.1} if method.endswith("steps") else {"method": "prototypes"}
    found, steps, seconds = in_time(given.seconds, train, probe=5)
    return found, how, {"outer steps": steps, "seconds": seconds}


def measured(method: str, task: str, given: Setting) -> dict[str, Any]:
    way, shot = TASKS[task]
    net, how, took = start(method, way, shot, given)
    seen = dx.few_shot(
        net, given.drawn(given.taught, way, shot, seed=1), count=max(given.episodes // 3, 2), progress=False, **how
    )
    policy = dx.choose(seen.table, budget=BUDGET, temperature=dx.calibrate(seen.table), rule="plain")
    found = dx.few_shot(net, given.drawn(given.tested, way, shot, seed=2), count=given.episodes, progress=False, **how)
    dynamic, spent = found.under(policy)
    whole = found.table.static_macs
    costs = zip(found.table.trunk_macs_e, found.table.head_macs_e, strict=True)
    return {
        "task": task, "method": method, **took,
        "exits": [share.mean for share in found.accuracy_e], "halves": [share.half for share in found.accuracy_e],
        "macs": [(trunk + head) / whole for trunk, head in costs],
        "dynamic": dynamic.mean, "dynamic half": dynamic.half, "spent": spent,
    }  # fmt: skip


def figures(lines: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> list[dict[str, Any]]:
    out = []
    for line in lines:
        if line["task"] != "5-way 1-shot":
            continue
        name, last = line["method"], line["exits"][-1]
        cheap = [right for right, macs in zip(line["exits"], line["macs"], strict=True) if macs <= 0.4]
        out.append(figure(f"{name}: last exit, 5-way 1-shot", 100 * last, "%", ">= 96"))
        out.append(figure(f"{name}: best exit at 40 % of the MACs or less", 100 * max(cheap, default=0), "%", ">= 93"))
        out.append(figure(f"{name}: points lost by the policy", 100 * (last - line["dynamic"]), "points", "<= 0.5"))
        out.append(figure(f"{name}: MACs of the policy", line["spent"], "share", "<= 0.6"))
    for steps in sorted({int(steps) for line in held_out for steps in line["accuracy"]["joint"]}):
        gaps = [
            100 * (ln["accuracy"]["meta-learned"][str(steps)] - ln["accuracy"]["joint"][str(steps)]) for ln in held_out
        ]
        out.append(
            figure(
                f"held-out exit, {steps} steps: meta-learned less joint, mean of {len(gaps)} seeds",
                fmean(gaps),
                "points",
            )
        )
    return out


def page(lines: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> str:
    rows = [
        {
            **{key: line[key] for key in ("task", "method", "seconds", "outer steps")},
            **{
                f"exit {e} ({macs:.0%})": percent(right, half)
                for e, (right, half, macs) in enumerate(zip(line["exits"], line["halves"], line["macs"], strict=True))
            },
            f"under {BUDGET:.0%}": f"{percent(line['dynamic'], line['dynamic half'])} at {line['spent']:.0%}",
        }
        for line in lines
    ]
    seeds = [
        {"seed": ln["seed"], **{f"{name}, {k} steps": v for name, by in ln["accuracy"].items() for k, v in by.items()}}
        for ln in held_out
    ]
    return f"\n{table(rows)}\n{table(seeds)}"


def percent(mean: float, half: float) -> str:
    return f"{100 * mean:.2f} ± {100 * half:.2f}"


def on_held_out(seed: int, quick: bool) -> dict[str, Any]:
    """The recipe's own figures."""
    recipe = runpy.run_path(str(Path(__file__).parents[1] / "recipes" / "meta_held_out_exit.py"))
    config = recipe["SMOKE"] if quick else recipe["PAPER"]
    found = recipe["main"](replace(config, seed=seed))
    return {"seed": seed, **json.loads(json.dumps(found))}


def settings(given: argparse.Namespace) -> Setting:
    if given.quick:
        taught, tested = dx.split_classes(dx.data.digits(side=28), [5, 5], seed=0)
        return Setting(taught=taught, tested=tested, seconds=2, episodes=10, channels=8, batch=1, seed=0)
    taught = dx.with_rotations(dx.data.omniglot("small1", root=given.root))
    tested = dx.data.omniglot("small2", root=given.root)
    return Setting(taught=taught, tested=tested, seconds=given.seconds, episodes=600, channels=64, batch=4, seed=0)


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--root", type=Path, help="where Omniglot lies (omniglot_small1.zip, omniglot_small2.zip)")
    options.add_argument("--seconds", type=float, default=900.0, help="training time of each method [default: 900]")
    options.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    options.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    given = options.parse_args()
    asked = {"quick": given.quick, "seconds": given.seconds}
    kept = json.loads(given.json.read_text()) if given.json is not None and given.json.exists() else {}
    same = kept.get("asked") == asked
    lines, held_out = (kept["lines"], kept["held_out"]) if same else ([], [])
    setting = settings(given)
    ways = int(setting.taught.y.max()) + 1
    for task in given.tasks:
        if TASKS[task][0] > ways:
            continue
        for method in given.methods:
            if not any(ln["task"] == task and ln["method"] == method for ln in lines):
                lines.append(measured(method, task, setting))
                write(
                    "meta_fewshot",
                    given,
                    figures(lines, held_out),
                    quiet=True,
                    asked=asked,
                    lines=lines,
                    held_out=held_out,
                )
    for seed in range(1 if given.quick else 3):
        if not any(ln["seed"] == seed for ln in held_out):
            held_out.append(on_held_out(seed, given.quick))
    write(
        "meta_fewshot",
        given,
        figures(lines, held_out),
        markdown=page(lines, held_out),
        asked=asked,
        lines=lines,
        held_out=held_out,
    )


if __name__ == "__main__":
    main()
