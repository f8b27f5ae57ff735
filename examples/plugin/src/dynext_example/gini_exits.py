"""Thresholds by this package's confidence, on heads distilled without data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

import dynext as dx


@dataclass(frozen=True, kw_only=True)
class Config:
    """How much is synthesized and trained, and the share of the MACs to spend."""

    samples: int = 2048
    steps: int = 500
    budget: float = 0.8


PAPER = Config()
SMOKE = replace(PAPER, samples=32, steps=2)


def main(config: Config) -> dict[str, Any]:
    """MACs spent and agreement with the net as it was."""
    opened = dx.open_model("bundled:fashion_resnet20")
    bank = dx.synthesize(opened.model, shape=opened.spec.shape, n=config.samples, seed=0, spec=opened.spec)
    net = dx.attach(dx.split(opened.model, torch.zeros(1, *opened.spec.shape)), "example")
    table = dx.collect(dx.distill(net, opened.model, bank, steps=config.steps, seed=0), bank)
    report = dx.report(table, dx.choose(table, budget=config.budget, confidence="gini"))
    return {"macs": report.macs, "agreement": report.agreement}


if __name__ == "__main__":
    from dynext.recipe import recipe_cli

    recipe_cli(PAPER, SMOKE, main)
