"""How often thresholds break their promise: many draws of a few hundred unlabelled rows, judged on the labelled rest.

Exits are distilled on a quarter of the rows (unlabelled), the others are tabled once. Each draw takes calibration rows
from the table, chooses a policy by agreement with the full net, and looks at what it really loses and saves on the rows
not drawn. A promise is broken when more accuracy is lost than was allowed; the safe rule may do so in delta of the
draws.

    python benchmarks/thresholds.py --model cifar:resnet20 --checkpoint FILE --rows FILE.npz [--quick] [--json FILE]

Without ``--model`` the bundled net and Fashion-MNIST's training rows are taken (of which 6,000 are enough).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from harness import figure, parser, table, write

import dynext as dx

DELTA = 0.05
ALLOWED = (0.0075, 0.01)
ROWS, CALIBRATION, STEPS = 6000, 500, 600


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--model", default="bundled:fashion_resnet20")
    options.add_argument("--checkpoint", type=Path)
    options.add_argument("--rows", type=Path, metavar="FILE.npz", help="rows x and y")
    options.add_argument("--draws", type=int, help="[default: 100; 10 with --quick]")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    tabled = tabled_rows(given)
    draws = given.draws or (10 if given.quick else 100)
    lines = []
    for allowed in ALLOWED:
        for rule in ("safe", "plain"):
            found = np.array([one_draw(tabled, draw, allowed, rule) for draw in range(draws)])
            lines.append(
                {
                    "rule": rule,
                    "allowed": allowed,
                    "broken": float((found[:, 1] > allowed).mean()),
                    "lost, mean": float(found[:, 1].mean()),
                    "lost, 95 %": float(np.quantile(found[:, 1], 0.95)),
                    "saved, mean": float(found[:, 0].mean()),
                }
            )
    figures = [
        figure(
            f"draws that lose more than {line['allowed']:.2%}, rule {line['rule']}",
            line["broken"],
            "share",
            f"<= {DELTA}" if line["rule"] == "safe" else None,
        )
        for line in lines
    ]
    write("thresholds", given, figures, markdown="\n" + table(lines), lines=lines, draws=draws, model=given.model)


def tabled_rows(given: argparse.Namespace) -> dx.ExitTable:
    """Exits distilled on a quarter of the rows, without labels, and the table of the others."""
    opened = dx.open_model(given.model, checkpoint=given.checkpoint)
    rows = dx.data.fashion_mnist("train") if given.rows is None else dx.data.array(given.rows, opened.spec)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(given.seed))
    order = order[: ROWS // 4 if given.quick else ROWS]
    taught, others = rows.subset(order[: len(order) // 4]), rows.subset(order[len(order) // 4 :])
    staged = dx.split(opened.model, torch.zeros(1, *opened.spec.shape))
    net = dx.attach(staged, dx.default_heads(staged.num_classes), seed=given.seed)
    steps = STEPS // 10 if given.quick else STEPS
    return dx.collect(dx.distill(net, None, taught.unlabelled(), steps=steps, seed=given.seed), others)


def one_draw(tabled: dx.ExitTable, draw: int, allowed: float, rule: str) -> tuple[float, float]:
    """What a policy that was chosen on some rows saves and loses on the others."""
    order = torch.randperm(len(tabled), generator=torch.Generator().manual_seed(draw))
    seen = replace(tabled.subset(order[:CALIBRATION]), label_n=None, basis="teacher")
    others = tabled.subset(order[CALIBRATION:])
    policy = dx.choose(seen, max_drop=allowed, temperature=dx.calibrate(seen), rule=rule, delta=DELTA)
    outcome = dx.simulate(others, policy)
    static = float(others.right_ne[:, -1].double().mean())
    return outcome.saved, static - outcome.accuracy


if __name__ == "__main__":
    main()
