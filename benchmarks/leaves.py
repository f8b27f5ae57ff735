"""Frozen heads on synthesized samples: the public CIFAR-10 ResNet-20, heads after layer1 and layer2, no image seen.

Needs the public checkpoint (`--checkpoint cifar10_resnet20.th`) and test samples (`--test FILE.npz` with x and y);
neither ships with dynext. Accuracies are real: labels of the test samples, which nothing was chosen on.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from harness import figure, parser, write

import dynext as dx

ROWS, STEPS = 16_384, 1500
AFTER = ("layer1", "layer2")


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--checkpoint", type=Path, required=True)
    options.add_argument("--test", type=Path, required=True)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    opened = dx.open_model("cifar:resnet20", checkpoint=given.checkpoint)
    test = dx.data.array(given.test, opened.spec)
    if given.quick:
        test = test.subset(torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:1000])
    figures = []
    for method, bn, targets in (("leaves", "batch", (">= 0.35", ">= 0.54")), ("gaussian", "running", (None, None))):
        accuracy_e, seconds = heads(opened, test, method, bn, given.seed, quick=given.quick)
        name = f"{method}, {bn} statistics"
        for after, accuracy, target in zip(AFTER, accuracy_e, targets, strict=False):
            figures.append(figure(f"accuracy of the exit after {after}, {name}", accuracy, "share", target))
        figures.append(figure(f"CPU time, {name}", seconds, "s", "<= 240" if method == "leaves" else None))
    figures.append(figure("accuracy of the full net", accuracy_e[-1], "share"))
    write("leaves", given, figures, seed=given.seed)


def heads(
    opened: dx.Opened, test: dx.data.Samples, method: str, bn: str, seed: int, *, quick: bool
) -> tuple[list[float], float]:
    """Accuracy of every exit on ``test``, and the CPU seconds of synthesis, caching and distillation."""
    began = time.process_time()
    shape = opened.spec.shape
    rows, steps = (ROWS // 8, STEPS // 8) if quick else (ROWS, STEPS)
    net = dx.attach(dx.split(opened.model, torch.zeros(1, *shape), AFTER), dx.default_heads(10), seed=seed)
    bank = dx.synthesize(opened.model, shape=shape, n=rows, seed=seed, method=method, spec=opened.spec)
    net = dx.distill(net, opened.model, bank, steps=steps, seed=seed, bn=bn)
    seconds = time.process_time() - began
    return [
        line.right_of_all for line in dx.report(dx.collect(net, test), dx.Policy.never(net.num_exits)).exits
    ], seconds


if __name__ == "__main__":
    main()
