"""How often thresholds break their promise: many draws of a few hundred unlabelled samples, judged on the labelled
rest.

Exits are distilled on a quarter of the samples (unlabelled), the others go through the net once, into a table. Each
draw takes calibration samples from the table, chooses a policy by agreement with the full net, and measures what it
really loses and saves on the samples not drawn. A promise is broken when more accuracy is lost than was allowed; the
safe rule may do so in delta of the draws.

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

Rule = dx.policies.SafeRule | dx.policies.PlainRule
DELTA = 0.05
RULES: dict[str, Rule] = {"safe": dx.policies.SafeRule(delta=DELTA), "plain": dx.policies.PlainRule()}
SPLITS, BUDGETS, SLACK = 20, (0.4, 0.5, 0.6, 0.7, 0.8), 1.02
"""Draws for the second part; a budget counts as overrun beyond 2 % more."""
ALLOWED = (0.0075, 0.01)
SAMPLES, CALIBRATION, STEPS = 6000, 500, 600


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--model", default="bundled:fashion_resnet20")
    options.add_argument("--checkpoint", type=Path)
    options.add_argument("--samples", type=Path, metavar="FILE.npz", help="samples x and y")
    options.add_argument("--draws", type=int, help="[default: 100; 10 with --quick]")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    held_out = held_out_table(given)
    draws = given.draws or (10 if given.quick else 100)
    lines = []
    for allowed in ALLOWED:
        for name, rule in RULES.items():
            outcome_d2 = np.array([saved_and_lost(held_out, draw, allowed, rule) for draw in range(draws)])
            lines.append(
                {
                    "rule": name,
                    "allowed": allowed,
                    "broken": float((outcome_d2[:, 1] > allowed).mean()),
                    "lost, mean": float(outcome_d2[:, 1].mean()),
                    "lost, 95 %": float(np.quantile(outcome_d2[:, 1], 0.95)),
                    "saved, mean": float(outcome_d2[:, 0].mean()),
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
    draws_of_ways = [ways_along_budgets(held_out, draw) for draw in range(4 if given.quick else SPLITS)]
    rules, more = summary(draws_of_ways)
    page = "\n" + table(lines) + "\n" + table(rules)
    write("thresholds", given, figures + more, markdown=page, lines=lines, rules=rules, draws=draws, model=given.model)


def held_out_table(given: argparse.Namespace) -> dx.ExitTable:
    """What exits that were distilled on a quarter of the samples, without labels, say of the others."""
    opened = dx.open_model(given.model, checkpoint=given.checkpoint)
    samples = dx.data.fashion_mnist("train") if given.samples is None else dx.data.array(given.samples, opened.spec)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(given.seed))
    order = order[: SAMPLES // 4 if given.quick else SAMPLES]
    distilled_on, others = samples.subset(order[: len(order) // 4]), samples.subset(order[len(order) // 4 :])
    staged = dx.split(opened.model, torch.zeros(1, *opened.spec.shape))
    net = dx.attach(staged, dx.default_heads(staged.num_classes), seed=given.seed)
    steps = STEPS // 10 if given.quick else STEPS
    return dx.collect(dx.distill(net, None, distilled_on.unlabelled(), steps=steps, seed=given.seed), others)


def saved_and_lost(held_out: dx.ExitTable, draw: int, allowed: float, rule: Rule) -> tuple[float, float]:
    """What a policy that was chosen on some samples saves and loses on the others."""
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(draw))
    seen = replace(held_out.subset(order[:CALIBRATION]), label_n=None, basis="teacher")
    others = held_out.subset(order[CALIBRATION:])
    policy = dx.choose(seen, max_drop=allowed, temperature=dx.calibrate(seen), rule=rule)
    outcome = dx.simulate(others, policy)
    static = float(others.right_ne[:, -1].double().mean())
    return outcome.saved, static - outcome.accuracy


def ways_along_budgets(held_out: dx.ExitTable, draw: int) -> dict[str, list[dict[str, float]]]:
    """Each way's outcomes along budgets, of one draw; and risk control's."""
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(1000 + draw))
    seen, others = held_out.subset(order[:CALIBRATION]), held_out.subset(order[CALIBRATION:])
    temperature = dx.calibrate(seen)
    best = dx.policies.exact_front(others, temperature=temperature)
    fronts = {
        "quota": dx.policies.quota_front(seen, temperature=temperature),
        "exact": dx.policies.exact_front(seen, temperature=temperature),
        "genetic": dx.policies.genetic_front(seen, temperature=temperature, seed=draw),
    }
    outcomes: dict[str, list[dict[str, float]]] = {name: [] for name in (*fronts, "shared", "greedy", "controlled")}
    for budget in BUDGETS:
        policies = {name: front.within(budget) for name, front in fronts.items()}
        policies["shared"] = dx.choose(seen, budget=budget, temperature=temperature, rule="plain")
        policies["greedy"] = greedy(seen, budget, temperature.temperature_e)
        oracle = dx.simulate(others, best.within(budget)).accuracy
        for name, policy in policies.items():
            outcome, here = dx.simulate(others, policy), dx.simulate(seen, policy)
            overrun = float(outcome.macs > SLACK * budget * others.static_macs)
            outcomes[name].append({"overrun": overrun, "regret": oracle - outcome.accuracy, "seen": here.accuracy})
    half = replace(seen.subset(torch.arange(CALIBRATION // 2)), label_n=None, basis="teacher")
    tested = seen.subset(torch.arange(CALIBRATION // 2, CALIBRATION))
    for allowed in (0.02, 0.04):
        policy = dx.policies.control_risk(dx.policies.exact_front(half), tested, max_drop=allowed, delta=DELTA)
        outcome = dx.simulate(others, policy)
        outcomes["controlled"].append({"broken": float(1 - outcome.agreement > allowed), "saved": outcome.saved})
    return outcomes


def greedy(seen: dx.ExitTable, budget: float, temperature_e: tuple[float, ...]) -> dx.Policy:
    """Exit after exit, twice round, the best of nine thresholds (or none) that keeps the budget, others as they are."""
    threshold_e: list[float | None] = [0.0, *[None] * (seen.num_exits - 2), 0.0]
    for _ in range(2):
        for e in range(seen.num_exits - 1):
            tried = []
            for threshold in (None, *(i / 10 for i in range(1, 10)), threshold_e[e]):
                changed_e = (*threshold_e[:e], threshold, *threshold_e[e + 1 :])
                policy = dx.Policy(threshold_e=changed_e, temperature_e=temperature_e, basis="labels")
                outcome = dx.simulate(seen, policy)
                within = outcome.macs <= budget * seen.static_macs
                tried.append((within, outcome.accuracy if within else -outcome.macs, policy))
            threshold_e = list(max(tried, key=lambda trial: trial[:2])[2].threshold_e)
    return dx.Policy(threshold_e=tuple(threshold_e), temperature_e=temperature_e, basis="labels")


def summary(draws: list[dict[str, list[dict[str, float]]]]) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """A line a way, and the targets: fronts are not beaten where they were drawn, control breaks its word rarely."""
    rules: list[dict[str, object]] = []
    for name in ("shared", "greedy", "quota", "exact", "genetic"):
        points = [point for outcomes in draws for point in outcomes[name]]
        regret = np.array([point["regret"] for point in points])
        overrun = float(np.mean([point["overrun"] for point in points]))
        line = {"rule": name, "overruns": overrun, "regret, mean": float(regret.mean())}
        rules.append({**line, "regret, 95 %": float(np.quantile(regret, 0.95))})
    figures = []
    for front in ("exact", "genetic"):
        for rule in ("quota", "greedy"):
            pairs = [
                (a["seen"], b["seen"])
                for outcomes in draws
                for a, b in zip(outcomes[front], outcomes[rule], strict=True)
            ]
            share = float(np.mean([a >= b for a, b in pairs]))
            figures.append(
                figure(f"budgets at which the {front} front is not beaten by {rule}", share, "share", ">= 1")
            )
    broken = [point["broken"] for outcomes in draws for point in outcomes["controlled"]]
    saved = [point["saved"] for outcomes in draws for point in outcomes["controlled"]]
    figures.append(
        figure("draws in which risk control loses more than allowed", float(np.mean(broken)), "share", f"<= {DELTA}")
    )
    figures.append(figure("MACs that risk control saves, mean", float(np.mean(saved)), "share"))
    return rules, figures


if __name__ == "__main__":
    main()
