"""What skipping loses, saves and really gains: SkipNet and BlockDrop with labels, and without any data, on one net.

Each learned policy stands beside the best fixed set of blocks and chance at the same MACs (their trunks tuned as well),
beside the static net and beside a run of the same gates that multiplies masks, as public code does. Thresholds are the
ones that gates are trained for, one half; test samples are seen once. Reinforcement learning from scratch gets as
many steps as both parts of SkipNet's training.

    python benchmarks/skip.py [--quick] [--json FILE] [--markdown FILE]
    python benchmarks/skip.py --model cifar:resnet20 --checkpoint FILE --train FILE.npz --test FILE.npz ...

A run that was stopped goes on from its JSON file.

Without ``--model`` the bundled Fashion-MNIST net is taken; its training and test samples have to be on the machine. A
deeper one: `python recipes/train_static.py depth=38 width=16 out=FILE`, then ``--model cifar:resnet38 --checkpoint
FILE``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from harness import earlier, figure, parser, table, write
from torch import Tensor, nn

import dynext as dx
from dynext.net.masked_pass import gated, greedy

FULL = {
    "pretraining": 3000, "reinforcing": 1500, "curriculum": 2000, "joint": 2000, "tuning": 1000, "batch": 128,
    "test": 10_000, "seconds": 15.0, "rows": 8192, "steps": 1000, "skip_steps": 1500, "calibration": 500,
}  # fmt: skip
QUICK = {
    "pretraining": 4, "reinforcing": 3, "curriculum": 3, "joint": 3, "tuning": 2, "batch": 16, "test": 256,
    "seconds": 0.5, "rows": 256, "steps": 10, "skip_steps": 6, "calibration": 200,
}  # fmt: skip
STEPS = ("pretraining", "reinforcing", "curriculum", "joint", "tuning", "skip_steps")
METHODS = ("skipnet", "blockdrop")
KINDS = ("static", "skipnet", "blockdrop")
SCRATCH = "skipnet: reinforcement learning from scratch"
OWN = ("json", "markdown", "methods", "kinds", "images")
"""Options that do not change a line, only which there are."""
RANKED = 512
Line = dict[str, Any]


class Masked(nn.Module):
    """The same gates, every stage run for every sample: what multiplying masks costs."""

    def __init__(self, net: dx.DynamicNet, policy: dx.Policy) -> None:
        super().__init__()
        self.net, self.keep_g = net, policy.keep_g

    def forward(self, x: Tensor) -> Tensor:
        return gated(self.net, x, greedy(self.keep_g)).logits_bk


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """One net, and samples to train on, to rank by and to test on."""

    opened: dx.Opened
    staged: dx.graph.StagedNet
    train: dx.data.Samples
    ranked: dx.data.Samples
    test: dx.data.Samples
    seed: int
    precision: Any
    size: dict[str, Any]

    @classmethod
    def of(cls, given: argparse.Namespace) -> Bench:
        size = {**(QUICK if given.quick else FULL), **({"batch": given.batch} if given.batch else {})}
        size |= {name: max(int(given.share * size[name]), 1) for name in STEPS}
        if given.train is None:
            train, test = dx.data.fashion_mnist("train"), dx.data.fashion_mnist("test")
            like = {} if given.checkpoint is None else asdict(train.spec)
            opened = dx.open_model(given.model, checkpoint=given.checkpoint, **like)
        else:
            opened = dx.open_model(given.model, checkpoint=given.checkpoint)
            train, test = dx.data.array(given.train, opened.spec), dx.data.array(given.test, opened.spec)
        draw = torch.Generator().manual_seed(given.seed)
        order = torch.randperm(len(train), generator=draw)
        return cls(
            opened=opened,
            staged=dx.split(opened.model, torch.zeros(1, *opened.spec.shape), granularity="block"),
            train=train.subset(order[RANKED:]),
            ranked=train.subset(order[:RANKED]),
            test=test.subset(torch.randperm(len(test), generator=draw)[: size["test"]]),
            seed=given.seed,
            precision=given.precision,
            size=size,
        )

    def config(self, steps: int, lr: float, trunk_lr: float, **changes: Any) -> dx.FitConfig:
        return dx.FitConfig(
            steps=steps, lr=lr, trunk_lr=trunk_lr, batch_size=self.size["batch"], seed=self.seed,
            precision=self.precision, progress=False, **changes,
        )  # fmt: skip

    def taught(self, method: str, price: float, penalty: float) -> dx.DynamicNet:
        size, given = self.size, {"augment": dx.data.augment}
        if method == "blockdrop":
            net = dx.attach_gates(self.staged, dx.gates.policy_gates(8, side=14), seed=self.seed)
            given |= {"penalty": penalty}
            config = self.config(size["curriculum"], 1e-3, 0.0, schedule="constant")
            net, _ = dx.train.blockdrop_curriculum(net, self.train, config, **given)
            return dx.train.blockdrop_finetune(net, self.train, self.config(size["joint"], 2e-4, 2e-4), **given)[0]
        net = dx.attach_gates(self.staged, dx.gates.recurrent_gates(), at=self.staged.skippable[1:], seed=self.seed)
        config = self.config(size["pretraining"], 2e-3, 5e-4)
        net, _ = dx.train.skipnet_pretrain(net, self.train, config, price=price, **given)
        return self.reinforced(net, self.config(size["reinforcing"], 5e-4, 1e-4), price)

    def reinforced(self, net: dx.DynamicNet, config: dx.FitConfig, price: float) -> dx.DynamicNet:
        reward = dx.train.SkipNetReward(alpha=price, weight=1.0, baseline=True)
        return dx.train.skipnet_reinforce(net, self.train, config, augment=dx.data.augment, reward=reward)[0]

    def from_scratch(self, price: float) -> dx.DynamicNet:
        """The paper's ablation: net and gates untrained, and nothing but reinforcement learning."""
        recipe, like = self.opened.recipe, self.opened.spec
        name, own = f"cifar:{recipe['name']}", recipe["arguments"]
        fresh = dx.open_model(name, arguments=own, shape=like.shape, mean=like.mean, std=like.std).model
        staged = dx.split(fresh, torch.zeros(1, *self.opened.spec.shape), granularity="block")
        net = dx.attach_gates(staged, dx.gates.recurrent_gates(), at=staged.skippable[1:], seed=self.seed)
        steps = self.size["pretraining"] + self.size["reinforcing"]
        return self.reinforced(net, self.config(steps, 2e-3, 2e-3), price)

    def compared(self, net: dx.DynamicNet) -> dict[str, dx.Report]:
        def tune(control: dx.DynamicNet) -> dx.DynamicNet:
            config = self.config(self.size["tuning"], 5e-4, 5e-4)
            return dx.train.skipnet_pretrain(control, self.train, config, augment=dx.data.augment)[0]

        return dx.train.at_equal_cost(net, self.ranked, self.test, static=self.opened.model, tune=tune, seed=self.seed)

    def reported(self, net: dx.DynamicNet, policy: dx.Policy) -> dx.Report:
        return dx.report(dx.collect(net, self.test, keep=policy.skip_rule, static=self.opened.model), policy)

    def line(self, name: str, report: dx.Report) -> Line:
        blocks = len(self.staged.stages) - 2  # neither stem nor head
        kept = report.kept or ()
        return {
            "net": name,
            "accuracy": report.accuracy,
            "points lost": 100 * (report.static_accuracy - report.accuracy),
            "blocks run": 1 - (len(kept) - sum(kept)) / blocks,
            "MACs saved, gates paid": report.saved,
            "paths": report.paths or 1,
        }

    def clocks(self, name: str, net: dx.DynamicNet, policy: dx.Policy, saved: float) -> Iterator[Line]:
        """Milliseconds beside the static net and beside masks, on test samples."""
        net.cost = dx.measure(net)
        x = self.test.take(torch.arange(min(len(self.test), 512))).x
        budget = self.size["seconds"]
        statics = dx.side_by_side(self.opened.model, net, policy, x, budget_s=budget)
        masks = dx.side_by_side(Masked(net, policy).eval(), net, policy, x, budget_s=budget)
        for static, mask in zip(statics, masks, strict=True):
            yield {
                "net": name,
                "batch": static.batch,
                "static ms": static.static_ms,
                "ms": static.dynamic_ms,
                "speed-up": static.speedup,
                "promised by MACs": 1 / (1 - saved),
                "realised / promised": static.speedup * (1 - saved),
                "speed-up over masks": mask.speedup,
            }


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--model", default="bundled:fashion_resnet20")
    options.add_argument("--checkpoint", type=Path)
    options.add_argument("--train", type=Path, metavar="FILE.npz", help="samples x and y; with --test")
    options.add_argument("--test", type=Path, metavar="FILE.npz")
    options.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS, metavar="NAME")
    options.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS, metavar="NAME", help="without data")
    options.add_argument(
        "--price",
        type=float,
        default=0.2,
        help="of running every gated block, in nats, for skipnet: in pre-training and as alpha",
    )
    options.add_argument("--penalty", type=float, default=5.0, help="of a wrong answer, for blockdrop")
    options.add_argument("--batch", type=int)
    options.add_argument("--share", type=float, default=1.0, help="of all numbers of steps, for small machines")
    options.add_argument("--images", nargs="*", type=int, help="unlabelled ones to choose by, without data [0 500]")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true", help="of training")
    given = options.parse_args()
    bench = Bench.of(given)
    asked = {name: getattr(value, "name", value) for name, value in vars(given).items() if name not in OWN}
    kept = earlier(given.json, asked)
    lines, clocks = kept.get("lines", []), kept.get("clocks", [])
    done = {line["net"] for line in lines}

    def leave(*, quiet: bool) -> None:
        page = f"\n{table(lines)}\n{table(clocks)}"
        written = {"asked": asked, "lines": lines, "clocks": clocks}
        write("skip", given, figures(lines, clocks), markdown=page, quiet=quiet, **written)

    for method in [method for method in given.methods if f"{method}: learned" not in done]:
        net = bench.taught(method, given.price, given.penalty)
        reports = bench.compared(net)
        lines += [bench.line(f"{method}: {name}", report) for name, report in reports.items()]
        policy = dx.Policy.skipping(net.num_exits, net.num_gates)
        clocks += bench.clocks(method, net, policy, reports["learned"].saved)
        leave(quiet=True)
    if "skipnet" in given.methods and SCRATCH not in done:
        net = bench.from_scratch(given.price)
        policy = dx.Policy.skipping(net.num_exits, net.num_gates)
        lines.append(bench.line(SCRATCH, bench.reported(net, policy)))
        leave(quiet=True)
    for kind in given.kinds:
        for images in given.images if given.images is not None else (0, bench.size["calibration"]):
            name = f"data-free {kind}, {images} unlabelled images to choose by"
            if name in done:
                continue
            net, policy = _without_data(bench, kind, images)
            lines.append({**bench.line(name, bench.reported(net, policy)), "exits on": sum(policy.enabled_e) - 1})
            leave(quiet=True)
    leave(quiet=False)


def _without_data(bench: Bench, kind: str, images: int) -> tuple[dx.DynamicNet, dx.Policy]:
    size = bench.size
    conversion = dx.convert(
        bench.opened.model,
        bench.opened.spec,
        calibrate=bench.ranked.subset(torch.arange(images)) if images else None,
        synthesis=dx.Synthesis(n=size["rows"]),
        training=dx.Skip(kind, steps=size["steps"], skip_steps=size["skip_steps"]),
        run=dx.Run(seed=bench.seed, progress=False),
    )
    return conversion.net, conversion.policy


def figures(lines: list[Line], clocks: list[Line]) -> list[dict[str, Any]]:
    by_name = {line["net"]: line for line in lines}
    out = []
    for method in METHODS:
        learned = by_name.get(f"{method}: learned")
        if learned is None:
            continue
        out.append(figure(f"points lost, {method}", learned["points lost"], "points", "<= 0.5"))
        out.append(figure(f"share of the blocks run, {method}", learned["blocks run"], "share", "<= 0.5"))
        for control in ("fixed set", "chance"):
            ahead = 100 * (learned["accuracy"] - by_name[f"{method}: {control}"]["accuracy"])
            out.append(figure(f"ahead of {control} at equal cost, {method}", ahead, "points", "> 0"))
        scratch = by_name.get(SCRATCH)
        if method == "skipnet" and scratch is not None:
            ahead = 100 * (learned["accuracy"] - scratch["accuracy"])
            out.append(figure("pre-training first, ahead of from scratch", ahead, "points", "> 0"))
    for line in clocks:
        target = ">= 0.85" if line["batch"] == 1 else None
        name = f"realised / promised speed-up, {line['net']}, batch {line['batch']}"
        out.append(figure(name, line["realised / promised"], "ratio", target))
    for line in lines:
        if line["net"].startswith("data-free"):
            out.append(figure(f"points lost, {line['net']}", line["points lost"], "points", "<= 1.0"))
            out.append(figure(f"MACs saved, {line['net']}", line["MACs saved, gates paid"], "share", ">= 0.20"))
    return out


if __name__ == "__main__":
    main()
