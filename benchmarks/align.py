r"""Exit alignment side by side: one net, the same samples and steps, several seeds; few- and zero-shot accuracy per
exit.

The trunk is the bundled Fashion-MNIST ResNet-20, or the public CIFAR-10 ResNet-20 (`--checkpoint`, `--train`, `--test`
name its files). Each method trains the same exits twice: on samples of all classes, and on samples of all but the
held-out ones, with answers for the others alone. Then, on test samples that nothing was chosen on, at each exit:
accuracy of its own linear classifier, 5- and 20-shot prototypes (means over draws; in its embedding, and in the aligned
space where there is one), CKA of its embedding to the last exit's, MACs spent where a point may be lost (thresholds by
agreement on samples held out), and accuracy on the held-out classes, of which the exits have seen no sample: zero-shot
by prototypes of the final exit's own answers on unlabelled samples, and by the final classifier's weights where the
space is that of its features.

Methods: `labels` (no alignment), `distillation` (logits only), `l2` (features through linear adapters), and the losses;
`joint_...` trains the trunk too, held near the static net.

    python benchmarks/align.py [--quick] [--data cifar10 --checkpoint FILE --train NPZ --test NPZ] [--json FILE]

A run that was stopped goes on from its JSON file, method by method; `--methods` and `--seeds` do a part of it, and the
same command with more of them adds to the file. The trunks of `joint_...` take nearly all of the time. Small enough for
a single core, without these:

    python benchmarks/align.py --methods labels distillation l2 cosine ntxent barlow vicreg selfcon \
        --exits 3 --hidden 32 --samples 1536 --test-samples 2000 --batch-size 64 --steps 250 --json FILE
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from harness import earlier, figure, parser, table, write

import dynext as dx
from dynext.modules.layer_outputs import given_to
from dynext.net.last_layer import last_linear

AFTER = (0.15, 0.3, 0.45, 0.7)
HELD_OUT = (2, 5, 8)
SHOTS = (5, 20)
ASKED = ("quick", "data", "steps", "rows", "test_rows", "batch_size", "weight", "exits", "hidden")
"""Options that all lines of a JSON file share."""

LOSSES = ("cosine", "ntxent", "barlow", "vicreg", "selfcon")
ALONE = dx.align.AlignmentTerm(weight=0.0)
"""Classification alone."""
METHODS: dict[str, dict[str, Any]] = {
    "labels": {"term": ALONE, "learn": "labels"},
    "distillation": {"term": ALONE},
    "l2": {"term": dx.align.AlignmentTerm(loss="l2")},
    **{loss: {"term": dx.align.AlignmentTerm(loss=loss)} for loss in LOSSES},
    "joint_distillation": {"term": ALONE, "trunk": "joint"},
    "joint_cosine": {"term": dx.align.AlignmentTerm(loss="cosine"), "trunk": "joint"},
}


@dataclass(frozen=True, kw_only=True)
class CachedSamples:
    """Samples that all methods of a seed are measured on; the frozen trunk is run over them once."""

    samples: dx.data.Samples
    features: dx.zeroshot.Features
    final_nd: torch.Tensor
    """What the last exit sees of them."""

    @classmethod
    def of(cls, net: dx.DynamicNet, samples: dx.data.Samples) -> CachedSamples:
        with given_to(last_linear(net)) as given:
            features = dx.zeroshot.cache_features(net, None, samples, progress=False)
        return cls(samples=samples, features=features, final_nd=torch.cat([f.clone() for f in given]))

    @torch.no_grad()
    def embeddings(self, aligned: dx.align.Alignment) -> dx.align.Embeddings:
        """`dx.align.embed` of these samples, without the trunk where that is as it was."""
        if aligned.trunk == "joint":
            return dx.align.embed(aligned.net, self.samples)
        pairs = list(zip(aligned.net.eval().exits, self.features.reduced_e, strict=True))
        early = [torch.cat([exit.embedder(part.float()) for part in reduced.split(512)]) for exit, reduced in pairs]
        logits = [exit.classifier(f) for (exit, _), f in zip(pairs, early, strict=True)]
        logits_nek = torch.stack([*logits, self.features.logits_nk], dim=1)
        return dx.align.Embeddings(embedding_e=(*early, self.final_nd), logits_nek=logits_nek, label_n=self.samples.y)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all methods of a seed share."""

    net: dx.DynamicNet
    taught: dx.data.Samples
    apart: CachedSamples
    test: CachedSamples
    steps: int
    batch_size: int
    weight: float | None
    """Of every loss; each its own without it."""
    draws: int
    seed: int

    @property
    def seen(self) -> list[int]:
        return [k for k in range(self.net.num_classes) if k not in HELD_OUT]

    def without_held_out(self) -> dx.data.Samples:
        known = ~torch.isin(self.taught.y, torch.tensor(HELD_OUT))
        return self.taught.subset(known.nonzero()[:, 0])


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--data", choices=("fashion-mnist", "cifar10"), default="fashion-mnist")
    options.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights of cifar:resnet20")
    options.add_argument("--train", type=Path, metavar="NPZ", help="labelled CIFAR-10 samples to train on")
    options.add_argument("--test", type=Path, metavar="NPZ", help="labelled CIFAR-10 samples to test on")
    options.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    options.add_argument("--seeds", type=int, help="[default: 3; 1 with --quick]")
    options.add_argument("--steps", type=int, help="of each training [default: 2000; 6 with --quick]")
    options.add_argument("--samples", dest="rows", type=int, help="to train on [default: 8192; 160 with --quick]")
    options.add_argument(
        "--test-samples", dest="test_rows", type=int, help="to test on [default: all; 120 with --quick]"
    )
    options.add_argument("--batch-size", type=int, help="[default: 128; 32 with --quick]")
    options.add_argument("--exits", type=int, help="how many of the early ones [default: 4; 2 with --quick]")
    options.add_argument("--hidden", type=int, help="channels of the exits [default: theirs]")
    options.add_argument("--weight", type=float, help="of every loss [default: each its own]")
    given = options.parse_args()
    asked = {key: getattr(given, key) for key in ASKED}
    lines = earlier(given.json, asked).get("lines", [])
    for seed in range(given.seeds or (1 if given.quick else 3)):
        setting = settings(given, seed)
        done = {line["method"] for line in lines if line["seed"] == seed}
        for method in [method for method in METHODS if method in given.methods and method not in done]:
            lines.append({"method": method, "seed": seed, **measured(METHODS[method], setting)})
            write("align", given, figures(lines), markdown=pages(lines), quiet=True, asked=asked, lines=lines)
    write("align", given, figures(lines), markdown=pages(lines), asked=asked, lines=lines)


def settings(given: argparse.Namespace, seed: int) -> Setting:
    if given.data == "cifar10":
        if not (given.checkpoint and given.train and given.test):
            raise SystemExit("--data cifar10 needs --checkpoint, --train and --test")
        opened = dx.open_model("cifar:resnet20", checkpoint=given.checkpoint)
        train, test = (dx.data.array(path, opened.spec) for path in (given.train, given.test))
        # a file may be sorted by class, and the first samples are tested on
        test = test.subset(torch.randperm(len(test), generator=torch.Generator().manual_seed(0)))
    else:
        opened = dx.open_model("bundled:fashion_resnet20")
        train, test = dx.data.fashion_mnist("train"), dx.data.fashion_mnist("test")
    apart, num_train, num_test, batch = (400, 160, 120, 32) if given.quick else (1000, 8192, len(test), 128)
    num_train, num_test = given.rows or num_train, min(given.test_rows or num_test, len(test))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    after = AFTER[: given.exits or (2 if given.quick else None)]
    staged = dx.split(opened.model, torch.zeros(1, *opened.spec.shape), after=after)
    net = dx.attach(staged, dx.default_heads(staged.num_classes, hidden=given.hidden), seed=seed)
    return Setting(
        net=net,
        taught=train.subset(order[apart : apart + num_train]),
        apart=CachedSamples.of(net, train.subset(order[:apart])),
        test=CachedSamples.of(net, test.subset(torch.arange(num_test))),
        steps=given.steps or (6 if given.quick else 2000),
        batch_size=given.batch_size or batch,
        weight=given.weight,
        draws=2 if given.quick else 10,
        seed=seed,
    )


def measured(options: dict[str, Any], given: Setting) -> dict[str, Any]:
    """One line: what a method gives on all classes, then with some held out."""
    term = options["term"] if options["term"].weight is not None else replace(options["term"], weight=given.weight)
    same = {"steps": given.steps, "batch_size": given.batch_size, "seed": given.seed, "progress": False}
    common = {**same, **options, "term": term}
    aligned = dx.align.align_exits(given.net, given.taught, **common)
    apart, test = given.apart.embeddings(aligned), given.test.embeddings(aligned)
    some = dx.collect(aligned.net, given.apart.samples.subset(torch.arange(8)).unlabelled())  # what exits cost
    seen = replace(some, logits_nek=apart.logits_nek, rows="samples kept apart")
    tested = replace(some, logits_nek=test.logits_nek, label_n=test.label_n, basis="labels", rows="test samples")
    policy = dx.choose(seen, max_drop=0.01, temperature=dx.calibrate(seen))
    outcome = dx.simulate(tested, policy)
    static_n = given.test.features.logits_nk.argmax(1) == given.test.samples.y
    line: dict[str, Any] = {
        "depth": [macs / tested.static_macs for macs in tested.trunk_macs_e],
        "linear": tested.right_ne.double().mean(0).tolist(),
        "cka": [dx.align.cka(f, test.embedding_e[-1]) for f in test.embedding_e],
        "macs": outcome.macs / tested.static_macs,
        "accuracy_there": outcome.accuracy,
        "static": float(static_n.double().mean()),
        "collapsed": list(aligned.collapsed_e),
        "conflicts": aligned.conflicts,
        "seconds": aligned.seconds,
    }
    spaces = {"": (apart, test)}
    if aligned.weight:
        spaces[" in the space"] = (aligned.space.project(apart), aligned.space.project(test))
    for where, (shown, asked) in spaces.items():
        for shots in SHOTS:
            line[f"{shots}-shot{where}"] = few_shot(shown, asked, shots, given.draws)
    without = dx.align.align_exits(given.net, given.without_held_out(), classes=given.seen, **common)
    return {**line, **held_out(without, given)}


def few_shot(shown: dx.align.Embeddings, asked: dx.align.Embeddings, shots: int, draws: int) -> list[float]:
    """Mean accuracy of prototypes at each exit, over draws of the examples."""
    shares = []
    for draw in range(draws):
        index = dx.align.draw_shots(shown.label_n, shots, seed=draw)
        classes = dx.align.prototypes(
            shown.subset(index).embedding_e, shown.label_n[index], center_on=shown.embedding_e
        )
        right_ne = classes.logits(asked.embedding_e).argmax(-1) == asked.label_n[:, None]
        shares.append(right_ne.double().mean(0))
    return torch.stack(shares).mean(0).tolist()


def held_out(aligned: dx.align.Alignment, given: Setting) -> dict[str, Any]:
    """Accuracy on classes that the exits have seen no sample of: by their own classifiers, and zero-shot.

    As `dx.align.zero_shot` answers, from embeddings that are taken once.
    """
    asked, label_n = given.test.embeddings(aligned), given.test.samples.y
    own = dx.align.held_out_accuracy(asked.logits_nek, label_n, HELD_OUT)
    line: dict[str, Any] = {"held out, own classifier": list(own.zero_shot_e)}
    if not aligned.weight:
        return line
    z = aligned.space.project(asked)
    shown = aligned.space.project(given.apart.embeddings(aligned))
    ways = {"prototypes": dx.align.final_prototypes(shown, aligned.net.num_classes)}
    if aligned.loss in ("cosine", "l2"):
        ways["weights"] = aligned.space.class_vectors(aligned.net)
    for way, vector_kd in ways.items():
        exits, zero = aligned.net.num_exits, torch.zeros(vector_kd.shape[1])
        logits_nek = dx.align.Prototypes(vector_e=(vector_kd,) * exits, center_e=(zero,) * exits).logits(z.embedding_e)
        logits_nek[:, -1] = asked.logits_nek[:, -1]
        known = dx.align.held_out_accuracy(logits_nek, label_n, HELD_OUT)
        line[f"zero-shot by {way}"] = list(known.zero_shot_e)
        line[f"harmonic by {way}"] = list(known.harmonic_e)
    return line


def figures(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The targets: each method's ways of use against logit distillation, at the first two exits."""
    out = []
    base = mean(lines, "distillation", "5-shot")
    for method in METHODS:
        if not (group := [line for line in lines if line["method"] == method]):
            continue
        for way in ("5-shot", "5-shot in the space"):
            accuracy_e = mean(lines, method, way)
            if base and accuracy_e and method not in ("labels", "distillation"):
                gain = min(100 * (a - b) for a, b in zip(accuracy_e[:2], base[:2], strict=True))
                out.append(figure(f"{method}: {way} above distillation, at exits 0 and 1", gain, "points", ">= 5"))
        for way in ("prototypes", "weights"):
            known = mean(lines, method, f"zero-shot by {way}")
            if known:
                early = [e for e, depth in enumerate(group[0]["depth"][:-1]) if depth <= 0.5]
                share = max(known[e] for e in early) / known[-1]
                name = f"{method}: zero-shot by {way} at half depth, share of the last exit's"
                out.append(figure(name, share, "", ">= 0.5"))
        lost = 100 * fmean(line["static"] - line["linear"][-1] for line in group)
        target = "<= 0.3" if method.startswith("joint") else "<= 0"
        out.append(figure(f"{method}: points lost at the last exit", lost, "points", target))
    return out


def mean(lines: list[dict[str, Any]], method: str, key: str) -> list[float]:
    """Of a figure per exit, over the seeds; empty where there is none."""
    columns = zip(*(line[key] for line in lines if line["method"] == method and key in line), strict=True)
    return [fmean(column) for column in columns]


def pages(lines: list[dict[str, Any]]) -> str:
    """A table a figure: a row a method, a column an exit, in percent, with deviations over the seeds."""
    text = ""
    keys = dict.fromkeys(key for line in lines for key, value in line.items() if key not in ("depth", "collapsed"))
    for key in keys:
        rows = []
        for method in METHODS:
            values = [line[key] for line in lines if line["method"] == method and key in line]
            if values and isinstance(values[0], list):
                cells = {f"exit {e}": cell(column) for e, column in enumerate(zip(*values, strict=True))}
                rows.append({"method": method, **cells})
        text += f"\n## {key}\n\n{table(rows)}" if rows else ""
    plain = ("macs", "accuracy_there", "conflicts", "seconds")
    rows = [
        {"method": method, **{key: fmean(line[key] for line in lines if line["method"] == method) for key in plain}}
        for method in METHODS
        if any(line["method"] == method for line in lines)
    ]
    return text + f"\n## MACs where a point may be lost\n\n{table(rows)}"


def cell(values: tuple[float, ...]) -> str:
    spread = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.2f}{spread}"


if __name__ == "__main__":
    main()
