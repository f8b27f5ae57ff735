"""Attention lent to exits, and every way to make a net cheaper on one picture: Fashion-MNIST and CIFAR-10, three seeds.

First, each exit of a frozen net, the same samples and steps: (a) plain heads; (b) SCAN's attention, kept at run time;
(c) heads that mimic where the next stage looks; (d) ours, detached and folded, and detached with the exit's own mask
kept; (e) the later attention still attached, which no exit can have at run time. With labels, unlabelled images, or
none.

Second, accuracy against MACs and milliseconds (batch 1, CPU, beside the static float net in one process): pruned
channels, 8 bits, a compact net, early exits, skipped blocks, and combinations. Thresholds come from other samples.

    python benchmarks/prune.py [--quick | --short] [--samples labels|unlabelled|bank] [--json FILE] [--picture FILE]
    python benchmarks/prune.py --data cifar --checkpoint cifar10_resnet20.th --test cifar10_test_jpeg.npz

A run can be done in pieces, ``--parts exits --seeds 1`` and so on, and one that was stopped goes on: what is in the
JSON file is not run again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import earlier, parser, write
from prune_page import LOST, figures, pages, picture
from torch import Tensor, nn
from torch.utils.benchmark import Timer

import dynext as dx
from dynext.train.drift import lost_by_drift

FULL: dict[str, Any] = {
    "steps": 4000, "batch": 128, "taught": 20_000, "judged": None, "after": [0.15, 0.3, 0.45, 0.6],
    "budgets": [0.75, 0.5, 0.35], "widths": [0.25, 0.5], "skip": True,
}  # fmt: skip
SHORT = {**FULL, "steps": 250, "batch": 64, "taught": 4000, "judged": 2000, "after": [0.3, 0.6], "budgets": [0.5],
         "widths": [0.25], "skip": False}  # fmt: skip
QUICK = {**SHORT, "steps": 20, "taught": 256, "judged": 400}
"""What a run spends; each is an option as well."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all lines of a seed share."""

    seed: int
    opened: dx.Opened
    source: dx.Source
    """What is learned from."""
    held_out: dx.data.Samples
    """For thresholds; with labels where samples have them."""
    test: dx.data.Samples
    spent: dict[str, Any]
    """Of `FULL`'s kind."""
    precision: Any
    """Of training."""
    quick: bool

    def config(self, share: float = 1.0) -> dx.FitConfig:
        steps = max(1, round(self.spent["steps"] * share))
        return dx.FitConfig(
            steps=steps,
            lr=2e-3,
            batch_size=self.spent["batch"],
            seed=self.seed,
            precision=self.precision,
            progress=False,
        )

    def net(self, heads: Any = None, **options: Any) -> dx.DynamicNet:
        example = torch.zeros(1, *self.opened.spec.shape)
        staged = dx.split(self.opened.model, example, after=self.spent["after"], **options)
        return dx.attach(staged, heads or dx.default_heads(self.opened.num_classes), seed=self.seed)


def main() -> None:
    given = options()
    spent = {name: getattr(given, name) for name in FULL}
    asked = {name: getattr(given, name) for name in ("quick", "data", "rows", "precision")} | spent
    kept = earlier(given.json, asked)
    lines: list[dict[str, Any]] = kept.get("lines", [])
    for seed in range(given.seeds or (1 if given.quick else 3)):
        done = {line["part"] for line in lines if line["seed"] == seed}
        for part in [part for part in given.parts if part not in done]:
            setting = settings(given, seed, spent)
            began = time.monotonic()
            added = {"exits": exit_lines, "ways": way_lines}[part](setting)
            print(f"{part} of seed {seed}: {(time.monotonic() - began) / 60:.1f} minutes", flush=True)
            lines += [{"part": part, "seed": seed, **line} for line in added]
            write("prune", given, figures(lines), markdown=pages(lines), quiet=True, asked=asked, lines=lines)
    picture(lines, given.picture)
    write("prune", given, figures(lines), markdown=pages(lines), asked=asked, lines=lines)


def options() -> argparse.Namespace:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--data", choices=("fashion", "cifar"), default="fashion")
    arguments.add_argument(
        "--samples", dest="rows", choices=("labels", "unlabelled", "bank"), help="[default: labels; bank with cifar]"
    )
    arguments.add_argument("--checkpoint", type=Path, help="of the public ResNet-20, with --data cifar")
    arguments.add_argument("--test", type=Path, help="CIFAR-10 test samples as .npz, with --data cifar")
    arguments.add_argument("--parts", nargs="*", choices=("exits", "ways"), default=["exits", "ways"])
    arguments.add_argument("--seeds", type=int, help="[default: 3; 1 with --quick]")
    arguments.add_argument("--short", action="store_true", help="fewer steps, samples, exits and ways")
    for name, kind in (("steps", int), ("batch", int), ("taught", int), ("judged", int)):
        arguments.add_argument(f"--{name}", type=kind, help=_defaults(name))
    for name in ("after", "budgets", "widths"):
        arguments.add_argument(f"--{name}", type=float, nargs="*", help=_defaults(name))
    arguments.add_argument("--skip", action=argparse.BooleanOptionalAction, help=_defaults("skip"))
    arguments.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true", help="of training")
    arguments.add_argument(
        "--picture", type=Path, metavar="FILE", help="accuracy against milliseconds and MACs goes here"
    )
    given = arguments.parse_args()
    given.rows = given.rows or ("bank" if given.data == "cifar" else "labels")
    for name, value in (QUICK if given.quick else SHORT if given.short else FULL).items():
        setattr(given, name, value if getattr(given, name) is None else getattr(given, name))
    if given.data == "cifar" and (given.checkpoint is None or given.test is None or given.rows != "bank"):
        arguments.error("--data cifar takes --checkpoint and --test, and samples from a bank alone")
    return given


def _defaults(name: str) -> str:
    return f"[default: {FULL[name]}; {SHORT[name]} with --short; {QUICK[name]} with --quick]"


def settings(given: argparse.Namespace, seed: int, spent: dict[str, Any]) -> Setting:
    if given.data == "cifar":
        opened, train = dx.open_model("cifar:resnet20", checkpoint=given.checkpoint), None
        test = dx.data.array(given.test, opened.spec)
    else:
        opened = dx.open_model("bundled:fashion_resnet20")
        train, test = dx.data.fashion_mnist("train"), dx.data.fashion_mnist("test")
    draw = torch.Generator().manual_seed(seed)
    # thresholds come from samples that the static net has not seen: on those it was trained on it is too good
    # to compare
    held_out, test = (
        test.subset(part) for part in torch.randperm(len(test), generator=draw).split([1000, len(test) - 1000])
    )
    held_out = held_out if given.rows == "labels" else held_out.unlabelled()
    if train is not None:
        train = train.subset(torch.randperm(len(train), generator=draw)[: given.taught])
    if train is None or given.rows == "bank":
        source: dx.Source = dx.synthesize(
            opened.model, shape=opened.spec.shape, n=min(given.taught, 8192), seed=seed, spec=opened.spec,
            method="fitted", progress=False,
        )  # fmt: skip
    else:
        source = train if given.rows == "labels" else train.unlabelled()
    return Setting(
        seed=seed, opened=opened, source=source, held_out=held_out,
        test=test.subset(torch.arange(min(given.judged or len(test), len(test)))), spent=spent,
        precision=given.precision, quick=given.quick,
    )  # fmt: skip


def exit_lines(given: Setting) -> list[dict[str, Any]]:
    """Each early exit's accuracy and MACs by every way of using attention."""
    net, source, config = given.net(), given.source, given.config()
    lent = dx.prune.lend_attention(net, seed=given.seed)
    faded = dx.prune.distill_attention(lent, source, config)
    masked = dx.prune.distill_attention(lent, source, config, anneal=False)
    scan = given.net(dx.heads.attention_heads(given.opened.num_classes))
    nets = {
        "plain": dx.prune.transfer_attention(net, source, config, weight=0.0),
        "scan": dx.prune.transfer_attention(scan, source, config, weight=0.0),
        "mimicry": dx.prune.transfer_attention(net, source, config),
        "detached": dx.prune.detach(faded),
        "detached_mask": dx.prune.detach(masked),
    }
    answers: dict[str, tuple[Callable[[Tensor], Tensor], dx.DynamicNet]]
    answers = {name: (trained.all_exits, trained) for name, trained in nets.items()}
    answers["attached"] = (masked.attached, dx.prune.detach(masked))
    lines = []
    for name, (all_exits, trained) in answers.items():
        macs = [(a + b) / net.staged.macs for a, b in zip(trained.trunk_macs_e, trained.head_macs_e, strict=True)]
        alone = [milliseconds(head, given.test, trained, e) for e, head in enumerate(trained.exits)]
        lines.append({"name": name, "exits": accuracies(all_exits, given.test), "macs": macs, "head_ms": alone})
    return lines


@torch.inference_mode()
def accuracies(all_exits: Callable[[Tensor], Tensor], test: dx.data.Samples) -> list[float]:
    right = [(all_exits(batch.x).argmax(-1) == batch.y[:, None]).double().sum(0) for batch in test]
    return (torch.stack(right).sum(0) / len(test)).tolist()


@torch.inference_mode()
def milliseconds(head: nn.Module, test: dx.data.Samples, net: dx.DynamicNet, e: int) -> float:
    """Median over single samples of what an exit takes beyond its stages."""
    x = test.take(torch.arange(1)).x
    tap = net.taps(x)[0][e]
    times = []
    for _ in range(5 if len(test) < 1000 else 50):
        began = Timer("head(tap)", globals={"head": head, "tap": tap}).timeit(5).median
        times.append(1000 * began)
    return sorted(times)[len(times) // 2]


def way_lines(given: Setting) -> list[dict[str, Any]]:
    """Accuracy, MACs and milliseconds of every way to spend less, and of their combinations."""
    source, model = given.source, given.opened.model
    net = dx.prune.transfer_attention(given.net(), source, given.config(), weight=0.0)
    bare = bare_of(net)
    lines = [line("static", bare, given), line("int8", dx.prune.quantize(bare, given.held_out), given)]
    for budget in given.spent["budgets"]:
        small = smaller(net, budget, given)
        coarse = dx.prune.quantize(small, given.held_out)
        lines += [
            line("pruned", bare_of(small), given, budget=budget),
            line("pruned_int8", bare_of(coarse), given, budget=budget),
            line("exits_pruned", small, given, budget=budget),
            line("exits_pruned_int8", coarse, given, budget=budget),
        ]
    lines += [line("exits", net, given), line("exits_int8", dx.prune.quantize(net, given.held_out), given)]
    for width in given.spent["widths"]:
        lines.append(line("compact", compact(width, model, given), given, budget=width))
    if given.spent["skip"]:
        lines.append(skipping(given))
    return lines


def smaller(net: dx.DynamicNet, budget: float, given: Setting) -> dx.DynamicNet:
    small = dx.prune.apply_plan(net, dx.prune.rank(net, budget=budget, by="taylor", source=given.source))
    return dx.prune.finetune(small, given.opened.model, given.source, given.config(0.5), batch_size=64)


def bare_of(net: dx.DynamicNet) -> dx.DynamicNet:
    return dx.DynamicNet(net.staged, [])


def compact(width: float, model: nn.Module, given: Setting) -> dx.DynamicNet:
    with dx.seeded(given.seed):
        student = dx.models.MobileNetV2(given.opened.num_classes, given.opened.spec.shape[0], width).eval()
    taught = dx.prune.distill_static(student, model, given.source, given.config(), batch_size=64)
    return dx.DynamicNet(dx.split(taught, torch.zeros(1, *given.opened.spec.shape)), [])


def skipping(given: Setting) -> dict[str, Any]:
    conversion = dx.convert(
        given.opened.model,
        given.opened.spec,
        calibrate=given.held_out,
        training=dx.Skip("skipnet", steps=given.spent["steps"] // 4),
        run=dx.Run(seed=given.seed, progress=False),
    )
    return measured("skip", conversion.net, conversion.policy, given)


def line(name: str, net: dx.DynamicNet, given: Setting, *, budget: float | None = None) -> dict[str, Any]:
    """Thresholds from held-out samples for at most a point less than the static float net in all."""
    policy = dx.Policy.never(net.num_exits)
    if len(net.exits):
        seen = dx.collect(net, given.held_out)
        allowed = max(LOST - gone(net, seen, given), 0.0)
        policy = dx.choose(seen, max_drop=allowed, temperature=dx.calibrate(seen))
    return measured(name, net, policy, given, budget=budget)


@torch.inference_mode()
def gone(net: dx.DynamicNet, seen: dx.ExitTable, given: Setting) -> float:
    """What the whole of a smaller net has lost already: by labels where there are some, else as the static net says."""
    if seen.label_n is None:
        return lost_by_drift(net, given.opened.model, given.held_out)
    right = [given.opened.model(batch.x).argmax(-1) == batch.y for batch in given.held_out]
    return float(torch.cat(right).double().mean() - seen.right_ne[:, -1].double().mean())


def measured(
    name: str, net: dx.DynamicNet, policy: dx.Policy, given: Setting, *, budget: float | None = None
) -> dict[str, Any]:
    outcome = dx.simulate(dx.collect(net, given.test, keep=policy.skip_rule), policy)
    x = given.test.take(torch.arange(min(len(given.test), 256))).x
    (timing,) = dx.side_by_side(given.opened.model, net, policy, x, batches=(1,), budget_s=0.5 if given.quick else 4.0)
    static = dx.split(given.opened.model, torch.zeros(1, *given.opened.spec.shape)).macs
    return {
        "name": name,
        "budget": budget,
        "accuracy": outcome.accuracy,
        "macs": outcome.macs / static,
        "ms": timing.dynamic_ms,
        "static_ms": timing.static_ms,
        "speedup": timing.speedup,
    }


if __name__ == "__main__":
    main()
