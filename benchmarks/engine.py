"""What dynamic execution costs and what it gives back, on the wall clock: CPU, batch 1, 64 and 256, side by side.

1. `run` under a policy that lets nobody leave, against the static net: what the stages and the books cost.
2. `run` under a policy by which about half of the samples leave at each exit: the realised speed-up, divided by the one
   that separately measured stage and exit times predict for the very samples that reached them.
"""

from __future__ import annotations

from typing import Any

import torch
from harness import figure, parser, table, write

import dynext as dx

BATCHES = (1, 64, 256)
NETS = ("bundled:fashion_resnet20", "torchvision:mobilenet_v3_small")
NEVER_TARGET = "<= 1.05"
REALISED_TARGET = {1: ">= 0.85", 64: ">= 0.90", 256: ">= 0.90"}


def main() -> None:
    options = parser(__doc__ or "").parse_args()
    seconds = 3.0 if options.quick else 10.0
    lines = [line for name in (NETS[:1] if options.quick else NETS) for line in measured(name, seconds)]
    figures = []
    for line in lines:
        where = f"{line['net']}, batch {line['batch']}"
        figures += [
            figure(f"never-exit run / static net, {where}", line["never"], "ratio", NEVER_TARGET),
            figure(f"realised / predicted speed-up, {where}", line["share"], "ratio", REALISED_TARGET[line["batch"]]),
            figure(f"realised speed-up, {where}", line["speedup"], "ratio"),
        ]
    write("engine", options, figures, markdown="\n" + table(lines), lines=lines)


def measured(name: str, seconds: float) -> list[dict[str, Any]]:
    """One line a batch size."""
    opened = dx.open_model(name)
    staged = dx.split(opened.model, torch.zeros(1, *opened.spec.shape))
    net = dx.attach(staged, dx.default_heads(staged.num_classes))
    count = 512 if opened.spec.shape[-1] < 64 else 256
    x = torch.randn(count, *opened.spec.shape, generator=torch.Generator().manual_seed(0))
    policy = halving(net, x)
    net.cost = dx.measure(net)
    lines = []
    for batch in BATCHES:
        (never,) = dx.side_by_side(
            opened.model, net, dx.Policy.never(net.num_exits), x, batches=[batch], budget_s=seconds
        )
        (half,) = dx.side_by_side(opened.model, net, policy, x, batches=[batch], budget_s=seconds)
        predicted = predicted_speedup(net, policy, x, batch)
        lines.append(
            {
                "net": name,
                "batch": batch,
                "static ms": never.static_ms,
                "never": 1 / never.speedup,
                "speedup": half.speedup,
                "predicted": predicted,
                "share": half.speedup / predicted,
            }
        )
    return lines


@torch.inference_mode()
def halving(net: dx.DynamicNet, x: torch.Tensor) -> dx.Policy:
    """Each exit's threshold is the median confidence of the samples that reach it; off where none does, for ties."""
    confidence_ne = torch.cat(
        [
            dx.policies.confidence(net.all_exits(part).flatten(0, 1), "max_probability").view(len(part), -1)
            for part in x.split(64)
        ]
    )
    thresholds: list[float | None] = [None] * (net.num_exits - 1)
    for e in range(net.num_exits - 1):
        if not len(confidence_ne):
            break
        median = confidence_ne[:, e].median()
        thresholds[e] = float(median)
        confidence_ne = confidence_ne[confidence_ne[:, e] < median]
    return dx.Policy(threshold_e=(*thresholds, 0.0), temperature_e=(1.0,) * net.num_exits)


def predicted_speedup(net: dx.DynamicNet, policy: dx.Policy, x: torch.Tensor, batch: int) -> float:
    """Static time over dynamic time, both put together from the measured times of stages and exits alone."""
    cost = net.cost
    static = dynamic = 0.0
    for rows in x.split(batch):
        exit_b = net.run(rows, policy).exit
        static += cost.static(len(rows))
        first = 0
        for e, end in enumerate([*(exit.after for exit in net.exits), len(net.staged.stages) - 1]):
            reached = int((exit_b >= e).sum())
            if reached:
                dynamic += sum(cost.stage(s, reached) for s in range(first, end + 1)) + cost.exit(e, reached)
            first = end + 1
    return static / dynamic


if __name__ == "__main__":
    main()
