"""What exits learn without data: every synthesizer, frozen and joint, between two controls, on one net.

Controls: Gaussian noise without batch statistics, and all training images, unlabelled. Same heads, same steps. The
**data-free ratio** of a source is the MACs it saves at no more than a point lost over those that the real images save,
class biases and thresholds from the same 500 unlabelled samples for both, mean over ``--draws`` of them (joint: the
first alone; "no biases": thresholds alone). Exits' accuracies are those without any image. Thresholds from no image at
all are reported beside them: those that hold on two kinds of synthesized samples, as in `dx.convert`, and, to see why,
those that one kind alone suggests. Labels are those of test samples that nothing was chosen on. Seconds are the CPU's.

    python benchmarks/zeroshot.py [--quick] [--json FILE] [--markdown FILE] [--keep]
    python benchmarks/zeroshot.py --model cifar:resnet20 --checkpoint FILE --train FILE.npz --test FILE.npz ...

Without ``--model`` the bundled Fashion-MNIST net is taken; its training and test samples have to be on the machine. A
run that was stopped goes on with ``--keep`` and the same ``--json FILE``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from harness import figure, parser, table, write

import dynext as dx
from dynext.net.collect import table_of
from dynext.net.features import Features, cache_features, head_logits
from dynext.zeroshot.cross_fit import recalibrated
from dynext.zeroshot.thresholds import CAUTION, OTHER_METHOD, ROWS, choose_cautiously

SOURCES = (
    "gaussian", "pink", "leaves", "objects", "fitted", "impressions", "generator", "inversion", "mixture",
)  # fmt: skip
CONTROLS = ("noise", "real")
FULL = {"rows": 8192, "steps": 1000, "calibration": 500, "joint_steps": 300, "test": None, "train": None, "draws": 1}
QUICK = {"rows": 512, "steps": 60, "calibration": 200, "joint_steps": 4, "test": 1000, "train": 2000, "draws": 1}
QUICK_SOURCES = ("leaves", "fitted")
Line = dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """One net with the features that every source is judged on; the trunk is frozen, so they are cached once."""

    opened: dx.Opened
    net: dx.DynamicNet
    train: dx.data.Samples
    test: dx.data.Samples
    calibration: dx.data.Samples
    test_features: Features
    calibration_features: Features
    """Of all draws of calibration samples, the first draw's in front."""
    unseen_features: tuple[Features, Features]
    """Samples that nobody distils on: fitted ones, and the other kind."""
    unseen_distance: float
    """BatchNorm distance of the nearer kind."""
    size: dict[str, Any]

    @cached_property
    def real_features(self) -> tuple[Features, float]:
        """Those of all training samples, and the CPU-seconds they took."""
        began = time.process_time()
        features = cache_features(self.net, None, self.train)
        return features, time.process_time() - began

    @classmethod
    def of(cls, given: argparse.Namespace) -> Bench:
        size = {**(QUICK if given.quick else FULL)}
        size |= {name: vars(given)[name] for name in ("rows", "steps", "joint_steps", "draws") if vars(given)[name]}
        opened = dx.open_model(given.model, checkpoint=given.checkpoint)
        if given.train is None:
            train, test = dx.data.fashion_mnist("train"), dx.data.fashion_mnist("test")
        else:
            train, test = dx.data.array(given.train, opened.spec), dx.data.array(given.test, opened.spec)
        order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
        test = test.subset(order[: size["test"]])
        staged = dx.split(opened.model, torch.zeros(1, *opened.spec.shape))
        net = dx.attach(staged, dx.default_heads(staged.num_classes))
        # calibration samples are taken from the front of an order of their own, those distilled on by "real" from its
        # end
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(1))
        drawn = size["calibration"] * size["draws"]
        unseen = [
            dx.synthesize(opened.model, shape=opened.spec.shape, n=ROWS, seed=99, method=method, spec=opened.spec)
            for method in ("fitted", OTHER_METHOD)
        ]
        first, second = (cache_features(net, None, rows) for rows in unseen)
        return cls(
            opened=opened,
            net=net,
            train=train.subset(order[drawn:][: size["train"]]).unlabelled(),
            test=test,
            calibration=train.subset(order[: size["calibration"]]).unlabelled(),
            test_features=cache_features(net, None, test),
            calibration_features=cache_features(net, None, train.subset(order[:drawn]).unlabelled()),
            unseen_features=(first, second),
            unseen_distance=min(dx.zeroshot.bn_distance_of(opened.model, rows) or 0.0 for rows in unseen),
            size=size,
        )


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--model", default="bundled:fashion_resnet20")
    options.add_argument("--checkpoint", type=Path)
    options.add_argument("--train", type=Path, metavar="FILE.npz", help="samples x and y; with --test")
    options.add_argument("--test", type=Path, metavar="FILE.npz")
    options.add_argument("--sources", nargs="+", choices=[*CONTROLS, *SOURCES], metavar="NAME")
    options.add_argument("--joint", nargs="*", choices=[*CONTROLS, *SOURCES], metavar="NAME", help="train jointly too")
    options.add_argument("--seeds", nargs="+", type=int, metavar="N")
    options.add_argument("--samples", dest="rows", type=int, help="to synthesize [default: 8192; 512 with --quick]")
    options.add_argument("--steps", type=int, help="of the heads [default: 1000; 60 with --quick]")
    options.add_argument("--joint-steps", type=int, help="of trunk and heads [default: 300; 4 with --quick]")
    options.add_argument(
        "--picture", type=Path, metavar="FILE", help="accuracy of each exit, a line a source, goes here"
    )
    options.add_argument("--draws", type=int, help="of calibration samples; means over them are taken [default: 1]")
    options.add_argument("--keep", action="store_true", help="keep the lines of an earlier run in --json FILE")
    given = options.parse_args()
    if (given.train is None) != (given.test is None):
        options.error("give --train and --test, or neither")
    bench = Bench.of(given)
    lines = _earlier(given) if given.keep else []
    done = {(line["source"], line["train"], line["seed"]) for line in lines}
    for line in _lines(bench, given, done):
        lines.append(line)
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in line.items() if k != "exits"}, flush=True)
        _write(given, lines, quiet=True)
    _write(given, lines)
    if given.picture is not None:
        _picture(lines, bench.net, given.picture)


def _lines(bench: Bench, given: argparse.Namespace, done: set[tuple[str, str, int]]) -> Iterator[Line]:
    sources = given.sources or (*CONTROLS, *(QUICK_SOURCES if given.quick else SOURCES))
    joint = given.joint if given.joint is not None else ["fitted"]
    for seed in given.seeds or ((0,) if given.quick else (0, 1, 2)):
        for source in sources:
            wanted = ["frozen", *(["joint"] if source in joint else [])]
            if any((source, train, seed) not in done for train in wanted):
                yield from _measured(bench, source, seed, wanted)


def _measured(bench: Bench, source: str, seed: int, wanted: list[str]) -> Iterator[Line]:
    """A line for frozen heads, and one for the whole net distilled from there on."""
    size, model = bench.size, bench.opened.model
    if source == "real":  # the same samples for every seed
        rows, (features, seconds) = bench.train, bench.real_features
        began = time.process_time()
    else:
        began, seconds = time.process_time(), 0.0
        rows = _synthesized(bench, source, seed)
        features = cache_features(bench.net, None, rows, bn="running" if source == "noise" else None)
    fresh = dx.attach(bench.net.staged, dx.default_heads(bench.net.num_classes), seed=seed)
    net = dx.distill(fresh, None, features, steps=size["steps"], seed=seed)
    seconds += time.process_time() - began
    test = table_of(net, head_logits(net, bench.test_features), label_n=bench.test.y, rows="test samples")
    seen = table_of(net, head_logits(net, bench.calibration_features), label_n=None, rows="unlabelled samples")
    unseen = _unseen(bench, net, test)
    plain, lines = [], []
    for index in torch.arange(len(seen)).split(size["calibration"]):
        plain.append(_line(source, "frozen", seed, seconds, seen.subset(index), test))
        righted, drawn = recalibrated(net, seen.subset(index))
        answers = table_of(net, head_logits(righted, bench.test_features), label_n=bench.test.y, rows="test samples")
        lines.append(_line(source, "frozen", seed, seconds, drawn, answers))
    line = lines[0] | {key: statistics.fmean(one[key] for one in lines) for key in ("accuracy", "saved", "lost")}
    # accuracies are those without any image; biases need some
    line |= {"exits": plain[0]["exits"], "saved, no biases": statistics.fmean(one["saved"] for one in plain)}
    yield {
        **line,
        "saved, draws": [one["saved"] for one in lines],
        "lost, draws": [one["lost"] for one in lines],
        **unseen,
    }
    if "joint" in wanted:
        began = time.process_time()
        net, told = dx.zeroshot.distill_jointly(net, model, rows, steps=size["joint_steps"], seed=seed)
        seconds += time.process_time() - began
        righted, seen = recalibrated(net, dx.collect(net, bench.calibration))
        line = _line(source, "joint", seed, seconds, seen, dx.collect(righted, bench.test))
        # what the static net gives is known from the frozen trunk
        static = float((bench.test_features.logits_nk.argmax(1) == bench.test.y).double().mean())
        yield {
            **line,
            "static": static,
            "lost": 100 * (static - line["accuracy"]),
            "undone": sum(check.restored for check in told.checks),
        }


def _synthesized(bench: Bench, source: str, seed: int) -> dx.Source:
    count, spec = bench.size["rows"], bench.opened.spec
    method = "gaussian" if source == "noise" else source
    return dx.synthesize(bench.opened.model, shape=spec.shape, n=count, seed=seed, method=method, spec=spec)


def _unseen(bench: Bench, net: dx.DynamicNet, test: dx.ExitTable) -> Line:
    """What thresholds do that were chosen without an image: for one kind of samples, and for two."""
    tables = [
        table_of(net, head_logits(net, features), label_n=None, rows="synthesized samples", synthetic=True)
        for features in bench.unseen_features
    ]
    caution = min(CAUTION, max(1 - bench.unseen_distance, 0.0))
    policies = {
        "one kind": choose_cautiously(tables[:1], caution=caution),
        "two kinds": choose_cautiously(tables, caution=caution, overhead=0.0),
    }
    found = {kinds: dx.simulate(test, policy) for kinds, policy in policies.items()}
    static = float(test.right_ne[:, -1].double().mean())
    saved = {f"saved, {kinds}": outcome.saved for kinds, outcome in found.items()}
    return saved | {f"lost, {kinds}": 100 * (static - (out.accuracy or 0.0)) for kinds, out in found.items()}


def _line(source: str, train: str, seed: int, seconds: float, seen: dx.ExitTable, test: dx.ExitTable) -> Line:
    outcome = dx.simulate(test, choose_cautiously([seen]))
    right_e = test.right_ne.double().mean(0).tolist()
    return {
        "source": source,
        "train": train,
        "seed": seed,
        "seconds": seconds,
        "exits": right_e,
        "static": right_e[-1],
        "accuracy": outcome.accuracy,
        "saved": outcome.saved,
        "lost": 100 * (right_e[-1] - (outcome.accuracy or 0.0)),
    }


def _earlier(given: argparse.Namespace) -> list[Line]:
    if given.json is None or not given.json.exists():
        return []
    return list(json.loads(given.json.read_text())["lines"])


def _write(given: argparse.Namespace, lines: list[Line], *, quiet: bool = False) -> None:
    rows = _summary(lines)
    figures = []
    for row in rows:
        name = f"{row['source']}, {row['train']}"
        for key, unit in (("saved", "share of the MACs"), ("lost", "points"), ("ratio", "ratio"), ("seconds", "CPU-s")):
            target = ">= 0.65" if key == "ratio" and row["source"] not in CONTROLS else None
            figures.append(figure(f"{key}, {name}", row[key], unit, target))
    write("zeroshot", given, figures, markdown="\n" + table(rows), quiet=quiet, lines=lines)


def _picture(lines: list[Line], net: dx.DynamicNet, path: Path) -> None:
    """Accuracy of every exit against how deep it stands; heads on a frozen trunk, means over the seeds."""
    import matplotlib.pyplot as plt

    depth = [100 * macs / net.trunk_macs_e[-1] for macs in net.trunk_macs_e]
    plot, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    means: dict[str, list[float]] = {}
    for source in {line["source"] for line in lines}:
        of = [line["exits"] for line in lines if line["source"] == source and line["train"] == "frozen"]
        means[source] = [100 * statistics.fmean(column) for column in zip(*of, strict=True)]
    for source, mean in sorted(means.items(), key=lambda item: -item[1][0]):
        axis.plot(depth, mean, "k--" if source in CONTROLS else "o-", alpha=0.8, markersize=4, label=source)
    axis.set(xlabel="where the exit stands, % of the net's MACs", ylabel="accuracy, %")
    plot.legend(loc="outside right upper", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    plot.savefig(path, bbox_inches="tight")
    plt.close(plot)


def _summary(lines: list[Line]) -> list[Line]:
    """Means over the seeds, deviations where there are several; ratios to the real images, exit by exit as well."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["source"], line["train"]), []).append(line)
    real = groups.get(("real", "frozen"), [])
    rows = []
    for (source, train), group in groups.items():
        row: Line = {"source": source, "train": train, "seeds": len(group)}
        row |= {key: statistics.fmean(line[key] for line in group) for key in ("seconds", "saved", "lost")}
        unseen = [key for key in group[0] if key.endswith((" kind", " kinds", " biases"))]
        row |= {key: statistics.fmean(line[key] for line in group) for key in unseen}
        row["saved sd"] = statistics.stdev(line["saved"] for line in group) if len(group) > 1 else None
        means = "saved, draws" in group[0]
        limits = [line["saved"] if means else line.get("saved, draws", [line["saved"]])[0] for line in real]
        row["ratio"] = row["saved"] / statistics.fmean(limits) if any(limits) else None
        exits = [statistics.fmean(column) for column in zip(*(line["exits"] for line in group), strict=True)]
        row["exits"] = " ".join(f"{100 * share:.1f}" for share in exits)
        if real:
            best = [statistics.fmean(column) for column in zip(*(line["exits"] for line in real), strict=True)]
            row["of real"] = " ".join(f"{share / limit:.2f}" for share, limit in zip(exits, best, strict=True))
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
