"""MSDNet: trained jointly, then a policy for any budget: MSDNet's quotas, the exact front, and a budget for each batch.

Thresholds are chosen on samples held out of the training set and frozen before the test samples are seen.
Run `python recipes/msdnet.py configuration=budgeted`; a killed run goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

import dynext as dx
from dynext.recipe import recipe_cli


@dataclass(frozen=True, kw_only=True)
class Config:
    """Published schedule: SGD .1, momentum .9, weight decay 1e-4, batch 64, 300 epochs, a tenth at 150 and 225."""

    configuration: Literal["anytime", "budgeted"] = "anytime"
    blocks: int | None = None
    """Classifiers, where not as published (7 anytime, 5 budgeted)."""
    width: int = 16
    growth: int = 6
    epochs: int = 300
    lr: float = 0.1
    batch: int = 64
    weight_decay: float = 1e-4
    held_out: int = 5000
    budgets: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.8)
    rows: int | None = None
    seed: int = 0
    folder: Path = Path("runs/msdnet")


PAPER = Config()
SMOKE = replace(
    PAPER, blocks=3, width=4, growth=2, epochs=1, held_out=64, rows=192, budgets=(0.8,),
    folder=Path("runs/smoke_msdnet"),
)  # fmt: skip


def main(config: Config) -> dict[str, object]:
    train, test = dx.data.fashion_mnist("train"), dx.data.fashion_mnist("test")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed))
    if config.rows is not None:
        order, test = order[: config.rows], test.subset(torch.arange(config.rows))
    held_out, taught = train.subset(order[: config.held_out]), train.subset(order[config.held_out :])

    sizes = {"channels": 1, "width": config.width, "growth": config.growth}
    sizes |= {} if config.blocks is None else {"blocks": config.blocks}
    net = dx.models.msdnet(config.configuration, side=28, seed=config.seed, **sizes)
    fit_config = dx.FitConfig(
        steps=config.epochs * len(taught) // config.batch,
        lr=config.lr,
        batch_size=config.batch,
        optimizer="sgd",
        schedule="milestones",
        weight_decay=config.weight_decay,
        seed=config.seed,
        checkpoint=config.folder / config.configuration / "run.ckpt",
    )
    net = dx.train.joint(net, taught, fit_config, augment=dx.data.augment)

    seen, table = dx.collect(net, held_out), dx.collect(net, test)
    temperature = dx.calibrate(seen)
    fronts = {
        "quota": dx.policies.quota_front(seen, temperature=temperature),
        "genetic": dx.policies.genetic_front(seen, temperature=temperature, seed=config.seed),
    }
    lines = []
    for budget in config.budgets:
        policies = {name: front.within(budget) for name, front in fronts.items()}
        policies["shared"] = dx.choose(seen, budget=budget, temperature=temperature, rule="plain")
        outcomes = {name: dx.simulate(table, policy) for name, policy in policies.items()}
        outcomes["batch"] = dx.policies.simulate_batch(
            table, dx.policies.plan_batch(seen, policies["shared"], budget=budget)
        )
        line = {"budget": budget}
        for name, outcome in outcomes.items():
            line |= {name: outcome.accuracy, f"{name} spends": outcome.macs / table.static_macs}
        print(line)
        lines.append(line)
    policy = dx.choose(seen, max_drop=0.005, temperature=temperature)
    model = {"kind": "cifar", "name": f"msdnet_{config.configuration}", "arguments": sizes}
    where = config.folder / config.configuration / "net"
    dx.save(net, where, policy=policy, spec=test.spec, model_recipe=model, table=seen)
    print(dx.report(table, policy))
    exits = table.right_ne.double().mean(0).tolist()
    return {"exits": exits, "macs": net.trunk_macs_e, "budgets": lines, "net": str(where)}


if __name__ == "__main__":
    recipe_cli(PAPER, SMOKE, main)
