"""How often thresholds break their promise: many draws of a few hundred unlabelled samples, judged on the labelled
rest.

Exits are distilled on a quarter of the samples (unlabelled), the others are tabled once. Each draw takes calibration
samples from the table, chooses a policy by agreement with the full net, and looks at what it really loses and saves on
the samples not drawn. A promise is broken when more accuracy is lost than was allowed; the safe rule may do so in delta
of the draws.

Then, with labels on the calibration samples, ways to choose thresholds for a budget: MSDNet's quotas, a greedy grid of
nine points, one shared threshold (`choose`), the exact front and the genetic one. Over 20 draws: how often the budget
is overrun on the other samples, and how much accuracy the best thresholds there would have given more (regret). And
fronts followed by risk control: a front on half of the calibration samples, tested on the other half.

    python benchmarks/thresholds.py --model cifar:resnet20 --checkpoint FILE --samples FILE.npz [--quick] [--json FILE]

Without ``--model`` the bundled net and Fashion-MNIST's training samples are taken (of which 6,000 are enough).
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
SPLITS, BUDGETS, SLACK = 20, (0.4, 0.5, 0.6, 0.7, 0.8), 1.02
"""Draws for the second part; a budget counts as overrun beyond 2 % more."""
ALLOWED = (0.0075, 0.01)
ROWS, CALIBRATION, STEPS = 6000, 500, 600


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--model", default="bundled:fashion_resnet20")
    options.add_argument("--checkpoint", type=Path)
    options.add_argument("--samples", dest="rows", type=Path, metavar="FILE.npz", help="samples x and y")
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
    chosen = [selected(tabled, draw) for draw in range(4 if given.quick else SPLITS)]
    rules, more = judged(chosen)
    page = "\n" + table(lines) + "\n" + table(rules)
    write("thresholds", given, figures + more, markdown=page, lines=lines, rules=rules, draws=draws, model=given.model)


def tabled_rows(given: argparse.Namespace) -> dx.ExitTable:
    """Exits distilled on a quarter of the samples, without labels, and the table of the others."""
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
    """What a policy that was chosen on some samples saves and loses on the others."""
    order = torch.randperm(len(tabled), generator=torch.Generator().manual_seed(draw))
    seen = replace(tabled.subset(order[:CALIBRATION]), label_n=None, basis="teacher")
    others = tabled.subset(order[CALIBRATION:])
    policy = dx.choose(seen, max_drop=allowed, temperature=dx.calibrate(seen), rule=rule, delta=DELTA)
    outcome = dx.simulate(others, policy)
    static = float(others.right_ne[:, -1].double().mean())
    return outcome.saved, static - outcome.accuracy


def selected(tabled: dx.ExitTable, draw: int) -> dict[str, list[dict[str, float]]]:
    """Each way's outcomes along budgets, of one draw; and risk control's."""
    order = torch.randperm(len(tabled), generator=torch.Generator().manual_seed(1000 + draw))
    seen, others = tabled.subset(order[:CALIBRATION]), tabled.subset(order[CALIBRATION:])
    temperature = dx.calibrate(seen)
    best = dx.policies.exact_front(others, temperature=temperature)
    fronts = {
        "quota": dx.policies.quota_front(seen, temperature=temperature),
        "exact": dx.policies.exact_front(seen, temperature=temperature),
        "genetic": dx.policies.genetic_front(seen, temperature=temperature, seed=draw),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in (*fronts, "shared", "greedy", "controlled")}
    for budget in BUDGETS:
        policies = {name: front.within(budget) for name, front in fronts.items()}
        policies["shared"] = dx.choose(seen, budget=budget, temperature=temperature, rule="plain")
        policies["greedy"] = greedy(seen, budget, temperature.temperature_e)
        oracle = dx.simulate(others, best.within(budget)).accuracy
        for name, policy in policies.items():
            outcome, here = dx.simulate(others, policy), dx.simulate(seen, policy)
            overrun = float(outcome.macs > SLACK * budget * others.static_macs)
            found[name].append({"overrun": overrun, "regret": oracle - outcome.accuracy, "seen": here.accuracy})
    half = replace(seen.subset(torch.arange(CALIBRATION // 2)), label_n=None, basis="teacher")
    tested = seen.subset(torch.arange(CALIBRATION // 2, CALIBRATION))
    for allowed in (0.02, 0.04):
        policy = dx.policies.control_risk(dx.policies.exact_front(half), tested, max_drop=allowed, delta=DELTA)
        outcome = dx.simulate(others, policy)
        found["controlled"].append({"broken": float(1 - outcome.agreement > allowed), "saved": outcome.saved})
    return found


def greedy(seen: dx.ExitTable, budget: float, temperature_e: tuple[float, ...]) -> dx.Policy:
    """Exit after exit, twice round, the best of nine thresholds (or none) that keeps the budget, others as they are."""
    threshold_e: list[float | None] = [0.0, *[None] * (seen.num_exits - 2), 0.0]
    for _ in range(2):
        for e in range(seen.num_exits - 1):
            tried = []
            for threshold in (None, *(i / 10 for i in range(1, 10)), threshold_e[e]):
                trial = (*threshold_e[:e], threshold, *threshold_e[e + 1 :])
                policy = dx.Policy(threshold_e=trial, temperature_e=temperature_e, basis="labels")
                outcome = dx.simulate(seen, policy)
                within = outcome.macs <= budget * seen.static_macs
                tried.append((within, outcome.accuracy if within else -outcome.macs, policy))
            threshold_e = list(max(tried, key=lambda one: one[:2])[2].threshold_e)
    return dx.Policy(threshold_e=tuple(threshold_e), temperature_e=temperature_e, basis="labels")


def judged(chosen: list[dict[str, list[dict[str, float]]]]) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """A line a way, and the targets: fronts are not beaten where they were drawn, control breaks its word rarely."""
    rules: list[dict[str, object]] = []
    for name in ("shared", "greedy", "quota", "exact", "genetic"):
        points = [point for found in chosen for point in found[name]]
        regret = np.array([point["regret"] for point in points])
        overrun = float(np.mean([point["overrun"] for point in points]))
        line = {"rule": name, "overruns": overrun, "regret, mean": float(regret.mean())}
        rules.append({**line, "regret, 95 %": float(np.quantile(regret, 0.95))})
    figures = []
    for front in ("exact", "genetic"):
        for rule in ("quota", "greedy"):
            pairs = [(a["seen"], b["seen"]) for f in chosen for a, b in zip(f[front], f[rule], strict=True)]
            share = float(np.mean([a >= b for a, b in pairs]))
            figures.append(
                figure(f"budgets at which the {front} front is not beaten by {rule}", share, "share", ">= 1")
            )
    broken = [point["broken"] for found in chosen for point in found["controlled"]]
    saved = [point["saved"] for found in chosen for point in found["controlled"]]
    figures.append(
        figure("draws in which risk control loses more than allowed", float(np.mean(broken)), "share", f"<= {DELTA}")
    )
    figures.append(figure("MACs that risk control saves, mean", float(np.mean(saved)), "share"))
    return rules, figures


if __name__ == "__main__":
    main()
