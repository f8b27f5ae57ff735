"""Early-exit methods side by side: one backbone, the same samples and steps, several seeds, Fashion-MNIST with labels.

For each method: every exit's accuracy, accuracy along budgets and its mean (chance where a budget is out of reach), ECE
of every exit before and after one temperature an exit, and the MACs spent where half a point may be lost. Temperatures
and thresholds come from samples held out of the training set; everything is measured on test samples. MACs count heads,
and are shares of the static backbone's (MSDNet's too: of the ResNet, not of its own).

Then what the papers observed, as differences: early classifiers against the last one, the last teacher against all,
samples without labels, and which parts of the image exits respond to (correlation of class activation maps with its
edges).

    python benchmarks/exits.py [--quick] [--methods joint imta ...] [--pictures FOLDER] [--json FILE]

A run that was stopped goes on from its JSON file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from exit_activation import edge_correlations, pictures
from harness import earlier, figure, parser, table, write

import dynext as dx

BUDGETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
AFTER = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
LOST = 0.005
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4, "schedule": "onecycle"},
    "adam": {"optimizer": "adam", "lr": 2e-3, "weight_decay": 0.0, "schedule": "cosine"},
}
"""Heads on a frozen net take the second, whatever the rest takes."""
JOINT = ("joint", "branchynet", "shallow_deep", "distillation_last", "distillation_later", "own_teacher", "scan",
         "imta", "boostnet", "mixed")  # fmt: skip
FROZEN = ("frozen_shallow_deep", "frozen_zero_time_waste", "frozen_jei_dnn")
METHODS = ("static", *JOINT, "half_the_labels", "semi_supervised", *FROZEN, "msdnet")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all methods of a seed share."""

    seed: int
    taught: dx.data.Samples
    held_out: dx.data.Samples
    test: dx.data.Samples
    steps: int
    optimizer: str
    depth: int
    width: int
    after: tuple[float, ...]
    msdnet: dict[str, Any]

    def config(self, steps: int | None = None, **changes: Any) -> dx.FitConfig:
        figures = {"batch_size": 64, **OPTIMIZERS[self.optimizer], **changes}
        return dx.FitConfig(steps=self.steps if steps is None else steps, seed=self.seed, progress=False, **figures)

    def net(self, heads: Callable[[int], Any] = dx.default_heads) -> dx.DynamicNet:
        with dx.seeded(self.seed):
            model = dx.models.ResNet(self.depth, width=self.width, channels=1).eval()
        staged = dx.split(model, torch.zeros(1, *self.test.shape), after=self.after)
        return dx.attach(staged, heads(10), seed=self.seed)


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    options.add_argument("--seeds", type=int, help="[default: 3; 1 with --quick]")
    options.add_argument("--steps", type=int, help="[default: 3000; 30 with --quick]")
    options.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd")
    options.add_argument("--depth", type=int, help="of the ResNet [default: 20; 8 with --quick]")
    options.add_argument("--width", type=int, help="channels of its first stage [default: 16; 8 with --quick]")
    options.add_argument("--pictures", type=Path, metavar="FOLDER", help="class activation maps go here")
    given = options.parse_args()
    asked = {name: getattr(given, name) for name in ("quick", "steps", "optimizer", "depth", "width")}
    kept = earlier(given.json, asked)
    lines, maps = kept.get("lines", []), kept.get("looks", [])
    for seed in range(given.seeds or (1 if given.quick else 3)):
        setting = settings(given, seed)
        done = {line["method"] for line in lines if line["seed"] == seed}
        wanted = [method for method in METHODS if method in ("static", *given.methods) and method not in done]
        static: dx.DynamicNet | None = None
        for method in dict.fromkeys((*(["static"] if set(wanted) & set(FROZEN) else []), *wanted)):
            net, policy = trained(method, setting, static)
            static = net if method == "static" else static
            if method in done:
                continue
            lines.append({"method": method, "seed": seed, **measured(net, policy, setting)})
            if method == "joint":
                maps.append({"seed": seed, **edge_correlations(net, setting.test)})
                pictures(net, setting.test, given.pictures, seed)
            kept = {"asked": asked, "lines": lines, "looks": maps}
            write("exits", given, figures(lines, maps), markdown=pages(lines), quiet=True, **kept)
    write("exits", given, figures(lines, maps), markdown=pages(lines), asked=asked, lines=lines, looks=maps)


def settings(given: argparse.Namespace, seed: int) -> Setting:
    width = given.width or (8 if given.quick else 16)
    # published for a first stage of 16 channels; beside a narrower net it is made narrower as well
    narrow = {"width": width, "growth": 2, "hidden": 4 * width} if width < 16 else {}
    train, test = dx.data.fashion_mnist("train"), dx.data.fashion_mnist("test")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    held_out, used = (1000, 2000) if given.quick else (5000, len(train))
    return Setting(
        seed=seed,
        taught=train.subset(order[held_out:used]),
        held_out=train.subset(order[:held_out]),
        test=test.subset(torch.arange(1000)) if given.quick else test,
        steps=given.steps or (30 if given.quick else 3000),
        optimizer=given.optimizer,
        depth=given.depth or (8 if given.quick else 20),
        width=width,
        after=(0.3, 0.6) if given.quick else AFTER,
        msdnet={"blocks": 3, "width": 4, "growth": 2} if given.quick else narrow,
    )


def trained(method: str, given: Setting, static: dx.DynamicNet | None) -> tuple[dx.DynamicNet, dx.Policy | None]:
    """A net by this method, and the policy where the method brings one; the frozen ones start from the static net."""
    config, more, samples = given.config(), {"augment": dx.data.augment}, given.taught
    adam = given.config(**OPTIMIZERS["adam"])
    half = torch.arange(len(samples) // 2)
    part, rest = samples.subset(half), samples.subset(half + len(half)).unlabelled()
    if method in FROZEN and static is not None:
        net = dx.attach(static.staged, dx.default_heads(10), seed=given.seed)
        few = samples.subset(torch.arange(min(len(samples), 20_000)))
        if method == "frozen_jei_dnn":
            return dx.train.jei_dnn(net, few, adam, batch_size=128)
        train = dx.train.shallow_deep if method == "frozen_shallow_deep" else dx.train.zero_time_waste
        return train(net, few, adam, batch_size=128), None
    if method == "static":
        net = given.net()
        return dx.train.joint(net, samples, config, weight_e=(*[0.0] * (net.num_exits - 1), 1.0), **more), None
    if method == "branchynet":
        net = given.net()
        return dx.train.joint(
            net, samples, config, weight_e=torch.linspace(1, 0.3, net.num_exits).tolist(), **more
        ), None
    if method == "imta":
        return dx.train.imta(given.net(), samples, config, heads=adam, **more), None
    if method == "mixed":
        first, second = (given.config(steps=given.steps // 2) for _ in range(2))
        return dx.train.mixed(given.net(), samples, second, backbone=first, **more), None
    if method == "msdnet":
        net = dx.models.msdnet("anytime", side=28, channels=1, seed=given.seed, **given.msdnet)
        return dx.train.joint(net, samples, config, **more), None
    methods = {
        "joint": lambda: dx.train.joint(given.net(), samples, config, **more),
        "shallow_deep": lambda: dx.train.shallow_deep(given.net(), samples, config, trunk="joint", **more),
        "distillation_last": lambda: dx.train.multi_exit_distillation(given.net(), samples, config, **more),
        "distillation_later": lambda: dx.train.multi_exit_distillation(
            given.net(), samples, config, teachers="later", **more
        ),
        "half_the_labels": lambda: dx.train.multi_exit_distillation(given.net(), part, config, **more),
        "semi_supervised": lambda: dx.train.multi_exit_distillation(given.net(), part, config, unlabelled=rest, **more),
        "own_teacher": lambda: dx.train.be_your_own_teacher(given.net(), samples, config, **more),
        "scan": lambda: dx.train.scan(given.net(dx.heads.attention_heads), samples, config, **more),
        "boostnet": lambda: dx.train.boostnet(given.net(), samples, config, **more),
    }
    return methods[method](), None


def measured(net: dx.DynamicNet, policy: dx.Policy | None, given: Setting) -> dict[str, Any]:
    seen, test = dx.collect(net, given.held_out), dx.collect(net, given.test)
    backbone = given.net().trunk_macs_e[-1]
    share = test.static_macs / backbone
    calibration = dx.calibrate(seen)
    along = []
    for budget in BUDGETS:
        try:
            there = dx.choose(seen, budget=budget / share, temperature=calibration, rule="plain")
        except dx.errors.PolicyError:
            along.append(1 / test.num_classes)
        else:
            along.append(dx.simulate(test, there).accuracy)
    policy = policy or dx.choose(seen, max_drop=LOST, temperature=calibration, rule="plain")
    outcome = dx.simulate(test, policy)
    after = test.logits_nek / torch.tensor(calibration.temperature_e)[:, None]
    last = float(test.right_ne[:, -1].double().mean())
    return {
        "macs": [(trunk + head) / backbone for trunk, head in zip(test.trunk_macs_e, test.head_macs_e, strict=True)],
        "exits": test.right_ne.double().mean(0).tolist(),
        "along": along,
        "ece": list(dx.calibrate(test).ece_before_e),
        "ece_calibrated": list(dx.calibrate(replace(test, logits_nek=after)).ece_before_e),
        "cost": outcome.macs / backbone,
        "lost": last - outcome.accuracy,
    }


def figures(lines: list[dict[str, Any]], maps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Targets, and what the papers observed as differences in points, over the seeds."""
    out = targets(lines)
    for name, one, two in (
        ("the last exit, with gradients in balance and without", "imta", "joint"),
        ("all exits, later teachers and the last alone", "distillation_later", "distillation_last"),
        ("all exits, samples without labels and none", "semi_supervised", "half_the_labels"),
    ):
        pick = (lambda line: line["exits"][-1]) if "the last exit," in name else (lambda line: fmean(line["exits"]))
        a, b = mean(lines, one, pick), mean(lines, two, pick)
        if a is not None and b is not None:
            out.append(figure(f"{name}: {one} - {two}", 100 * (a - b), "points"))
    curve = {
        m: [fmean(c) for c in zip(*(ln["along"] for ln in lines if ln["method"] == m), strict=True)] for m in METHODS
    }
    if curve["msdnet"]:
        above = [all(curve["msdnet"][i] >= curve[m][i] for m in JOINT if curve[m]) for i in range(len(BUDGETS))]
        out.append(figure("budgets at which MSDNet is above every exit on the ResNet", fmean(above), "share", ">= 1"))
    if maps:
        for e, values in enumerate(zip(*(line["edges"] for line in maps), strict=True)):
            out.append(figure(f"exit {e}: correlation of its activation map with edges", fmean(values), ""))
    return out


def targets(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    last = {m: mean(lines, m, lambda line: line["exits"][-1]) for m in METHODS}
    out = []
    for m in JOINT:
        if last[m] is not None:
            if last["static"] is not None:
                lost = 100 * (last["static"] - last[m])
                out.append(figure(f"{m}: points lost on the last exit", lost, "points", "<= 0.3"))
            cost = mean(lines, m, lambda line: line["cost"])
            out.append(figure(f"{m}: MACs at half a point", cost, "share", "<= 0.4"))
    for m in METHODS:
        worst = mean(lines, m, lambda line: max(line["ece_calibrated"]))
        if worst is not None and m != "static":
            out.append(figure(f"{m}: worst exit's ECE after calibration", worst, "", "<= 0.02"))
    return out


def mean(lines: list[dict[str, Any]], method: str, pick: Callable[[dict[str, Any]], float]) -> float | None:
    values = [pick(line) for line in lines if line["method"] == method]
    return fmean(values) if values else None


def pages(lines: list[dict[str, Any]]) -> str:
    rows = []
    for m in METHODS:
        group = [line for line in lines if line["method"] == m]
        if not group:
            continue
        areas = [fmean(line["along"]) for line in group]
        spread = f" ± {100 * stdev(areas):.2f}" if len(areas) > 1 else ""
        rows.append(
            {
                "method": m,
                "exits": " ".join(
                    f"{100 * fmean(c):.2f}" for c in zip(*(line["exits"] for line in group), strict=True)
                ),
                "mean along budgets": f"{100 * fmean(areas):.2f}{spread}",
                **{f"at {b:g}": 100 * fmean(line["along"][i] for line in group) for i, b in enumerate(BUDGETS)},
                "MACs at half a point": fmean(line["cost"] for line in group),
                "points lost there": 100 * fmean(line["lost"] for line in group),
                "ECE": " ".join(f"{fmean(c):.3f}" for c in zip(*(line["ece"] for line in group), strict=True)),
                "calibrated": " ".join(
                    f"{fmean(c):.3f}" for c in zip(*(line["ece_calibrated"] for line in group), strict=True)
                ),
            }
        )
    return "\n" + table(rows)


if __name__ == "__main__":
    main()
