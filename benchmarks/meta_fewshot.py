"""Few-shot learning per exit and under a budget: a four-exit net, meta-trained on Omniglot small1, tested on small2.

Every method gets the same net and the same seconds of one core: heads-only meta-learning, MAML, prototypes at every
exit, joint training on all training classes and Meta-GF fusion, the last two followed by class means or by class means
and steps. Thresholds come from episodes of a sixth of small1's characters, which no training sees: on characters it was
trained on a net is surer, and leaves earlier, than on any other. Then the open claim: a held-out exit after 1, 3 and 5
steps from a meta-learned start and from joint training (``recipes/meta_held_out_exit.py``).

    python benchmarks/meta_fewshot.py --root FOLDER [--quick] [--json FILE]

What is done is written to the JSON file after each line; a run that was stopped goes on from there, and ``--methods``,
``--tasks`` and ``--seeds`` do it in pieces. A training that serves several lines is run once for those that lack.
"""

from __future__ import annotations

import argparse
import json
import runpy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from harness import earlier, figure, parser, table, write
from torch import Tensor, nn

import dynext as dx

TASKS = {"5-way 1-shot": (5, 1), "5-way 5-shot": (5, 5), "20-way 1-shot": (20, 1)}
TRAININGS = {
    "heads": ("heads",), "maml": ("maml",), "prototypes": ("prototypes",),
    "joint": ("joint", "joint + steps"), "fusion": ("fusion", "fusion + steps"),
}  # fmt: skip
"""Each training, and the methods that use what it gives."""
FOR_ANY_TASK = ("prototypes", "joint", "fusion")
"""Trainings that know nothing of the tested ways and shots."""
MANY = 30
"""Classes of the episodes that prototypes are trained on: more than are tested, as their paper found best."""
BUDGET = 0.6
APART = 1 / 6


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all methods share."""

    taught: dx.data.Samples
    apart: dx.data.Samples
    """Classes that no training sees, for thresholds."""
    tested: dx.data.Samples
    seconds: float
    episodes: int
    channels: int
    batch: int
    seed: int

    def net(self, classes: int) -> dx.DynamicNet:
        with dx.seeded(self.seed):
            model = Conv4(self.channels, classes).eval()
        staged = dx.split(model, torch.zeros(1, *self.taught.shape), after=["block1", "block2", "block3"])
        # Deeper heads would cost more than the trunk, and no exit would be cheap.
        return dx.attach(staged, dx.heads.conv_heads(classes, hidden=self.channels // 2, separable=0), seed=self.seed)

    def drawn(self, samples: dx.data.Samples, way: int, shot: int, seed: int) -> dx.data.Episodes:
        return dx.data.Episodes(rows=samples, way=way, shot=shot, query=min(15, 20 - shot), seed=seed)


class Conv4(nn.Module):
    """Four blocks of a strided 3x3 convolution, BatchNorm and ReLU, and a linear layer on the mean.

    Wider where maps are smaller, so that blocks cost about the same: of MAML's, with 64 channels throughout, the second
    one takes two thirds, and no exit but the first is cheap.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        sizes = [1, channels // 2, channels, 2 * channels, 4 * channels]
        for i in range(4):
            block = nn.Sequential(nn.Conv2d(sizes[i], sizes[i + 1], 3, 2, 1), nn.BatchNorm2d(sizes[i + 1]), nn.ReLU())
            self.add_module(f"block{i + 1}", block)
        self.linear = nn.Linear(sizes[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.block4(self.block3(self.block2(self.block1(x)))).mean((2, 3)))


def in_time(seconds: float, train: Callable[[int], Any], probe: int) -> tuple[Any, dict[str, float]]:
    """``train(steps)`` with as many steps as fit: a short run says how long one takes, in the processor's seconds."""
    train(2)  # what is done once does not count
    begun = time.process_time()
    train(probe)
    steps = max(probe, round(seconds * probe / (time.process_time() - begun)))
    begun = time.process_time()
    return train(steps), {"outer steps": steps, "seconds": time.process_time() - begun}


def trained(training: str, task: str, given: Setting) -> tuple[Any, dict[str, float]]:
    """What a training gives, and what it took."""
    way, shot = TASKS[task]

    def config(steps: int) -> dx.FitConfig:
        return dx.FitConfig(steps=steps, lr=2e-3, seed=given.seed, progress=False)

    if training in ("joint", "fusion"):
        net = given.net(int(given.taught.y.max()) + 1)
        verb = {"joint": dx.train.joint, "fusion": dx.meta.meta_fusion}[training]
        return in_time(given.seconds, lambda steps: verb(net, given.taught, config(steps), batch_size=64), probe=5)
    net, drawn, batch = given.net(way), given.drawn(given.taught, way, shot, seed=0), given.batch
    if training == "prototypes":
        many = min(MANY, int(given.taught.y.max()) + 1)
        drawn, batch = dx.data.Episodes(rows=given.taught, way=many, shot=1, query=5), 1
    changes = {} if training == "prototypes" else {"steps": 3, "lr": 0.4 if training == "maml" else 0.1}
    inner = dx.meta.InnerLoop.of(training, **changes)
    exits = [range(net.num_exits)] if inner.adapts == "used" else None  # adapted as one net, with one trunk
    return in_time(
        given.seconds,
        lambda steps: dx.meta.meta_train(net, drawn, config(steps), inner=inner, exits=exits, batch=batch),
        probe=5,
    )


def how_to_learn(method: str) -> dict[str, Any]:
    """How an episode is learned; a meta-learned start knows by itself."""
    if not method.startswith(("joint", "fusion")):
        return {}
    return {"method": "head", "steps": 5, "lr": 0.1} if method.endswith("steps") else {"method": "prototypes"}


def measured(net: Any, method: str, task: str, given: Setting) -> dict[str, Any]:
    """One line: accuracies on episodes of classes that no training saw."""
    way, shot = TASKS[task]
    how = how_to_learn(method) | {"progress": False}
    seen = dx.meta.evaluate_episodes(
        net, given.drawn(given.apart, way, shot, seed=1), count=max(given.episodes // 3, 2), **how
    )
    policy = dx.choose(seen.table, budget=BUDGET, temperature=dx.calibrate(seen.table), rule="plain")
    on_tested = dx.meta.evaluate_episodes(
        net, given.drawn(given.tested, way, shot, seed=2), count=given.episodes, **how
    )
    dynamic, spent = on_tested.under(policy)
    whole = on_tested.table.static_macs
    costs = zip(on_tested.table.trunk_macs_e, on_tested.table.head_macs_e, strict=True)
    return {
        "task": task, "method": method,
        "exits": [share.mean for share in on_tested.accuracy_e],
        "halves": [share.half for share in on_tested.accuracy_e],
        "macs": [(trunk + head) / whole for trunk, head in costs],
        "dynamic": dynamic.mean, "dynamic half": dynamic.half, "spent": spent,
    }  # fmt: skip


def missing(lines: list[dict[str, Any]], given: argparse.Namespace) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Trainings that are to be run, each with the tasks and methods that wait for it."""
    there = {(line["task"], line["method"]) for line in lines}
    for training in given.methods:
        for tasks in [given.tasks] if training in FOR_ANY_TASK else [[task] for task in given.tasks]:
            pairs = [(task, method) for task in tasks for method in TRAININGS[training]]
            left = [pair for pair in pairs if pair not in there]
            if left:
                yield training, left


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


def on_held_out(seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """The recipe's own figures."""
    recipe = runpy.run_path(str(Path(__file__).parents[1] / "recipes" / "meta_held_out_exit.py"))
    config = (
        recipe["SMOKE"]
        if given.quick
        else replace(recipe["PAPER"], steps=given.held_out_steps, width=given.held_out_width)
    )
    folder = config.folder / f"width{config.width}_steps{config.steps}"
    result = recipe["main"](replace(config, seed=seed, folder=folder))
    return {"seed": seed, **json.loads(json.dumps(result))}


def setting_of(given: argparse.Namespace) -> Setting:
    if given.quick:
        taught, tested = dx.data.split_classes(dx.data.digits(side=28), [5, 5], seed=0)
        # ten classes are too few to keep five more apart
        return Setting(taught=taught, apart=taught, tested=tested, seconds=2, episodes=10, channels=8, batch=1, seed=0)
    small = dx.data.omniglot("small1", root=given.root)
    characters = int(small.y.max()) + 1
    few = round(APART * characters)
    taught, apart = (
        dx.data.with_rotations(part) for part in dx.data.split_classes(small, [characters - few, few], seed=0)
    )
    tested = dx.data.omniglot("small2", root=given.root)
    return Setting(
        taught=taught, apart=apart, tested=tested, seconds=given.seconds, episodes=given.episodes, channels=64, batch=4,
        seed=0,
    )  # fmt: skip


def options() -> argparse.Namespace:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--root", type=Path, help="where Omniglot lies (omniglot_small1.zip, omniglot_small2.zip)")
    arguments.add_argument("--seconds", type=float, default=900.0, help="of each training, on one core [default: 900]")
    arguments.add_argument("--episodes", type=int, default=600, help="that a line is measured on [default: 600]")
    arguments.add_argument("--methods", nargs="*", default=list(TRAININGS), choices=list(TRAININGS))
    arguments.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    arguments.add_argument(
        "--seeds", nargs="*", type=int, default=[0, 1, 2], help="of the held-out exit [default: 0 1 2]"
    )
    arguments.add_argument("--held-out-steps", type=int, default=3000, help="outer steps of it [default: 3000]")
    arguments.add_argument("--held-out-width", type=int, default=16, help="of its ResNet-14 [default: 16]")
    return arguments.parse_args()


def main() -> None:
    given = options()
    torch.set_num_threads(1)
    asked = {
        name: getattr(given, name) for name in ("quick", "seconds", "episodes", "held_out_steps", "held_out_width")
    }
    kept = earlier(given.json, asked)
    lines, held_out = kept.get("lines", []), kept.get("held_out", [])
    setting = setting_of(given)
    if given.quick:
        given.tasks = [task for task in given.tasks if TASKS[task][0] <= 5]
        given.seeds = given.seeds[:1]

    def leave(**how: Any) -> None:
        write("meta_fewshot", given, figures(lines, held_out), asked=asked, lines=lines, held_out=held_out, **how)

    for training, left in missing(list(lines), given):
        net, took = trained(training, left[0][0], setting)
        for task, method in left:
            lines.append({**measured(net, method, task, setting), **took})
            leave(quiet=True)
    for seed in given.seeds:
        if not any(line["seed"] == seed for line in held_out):
            held_out.append(on_held_out(seed, given))
            leave(quiet=True)
    leave(markdown=page(lines, held_out))


if __name__ == "__main__":
    main()
