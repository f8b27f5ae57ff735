"""A saved net learns classes it was not made for: the bundled Fashion-MNIST net and scikit-learn's digits.

Class means at every exit, then gradient steps on heads; thresholds from the support samples alone, each left out.
Run `python recipes/meta_adapt.py shot=10`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

import dynext as dx
from dynext.recipe import recipe_cli


@dataclass(frozen=True, kw_only=True)
class Config:
    """Exits after each stage of the net, untrained but for their class means."""

    model: str = "bundled:fashion_resnet20"
    after: tuple[str, ...] = ("layer1", "layer2")
    shot: int = 10
    steps: int = 5
    lr: float = 0.1
    max_drop: float = 0.02
    test: int = 1000
    seed: int = 0
    folder: Path = Path("runs/meta_adapt")


PAPER = Config()
SMOKE = replace(PAPER, shot=2, steps=1, test=20, folder=Path("runs/smoke_meta_adapt"))


def main(config: Config) -> dict[str, object]:
    opened = dx.open_model(config.model)
    digits = dx.data.digits(side=opened.spec.shape[-1])
    samples = dx.data.Samples(pixels=digits.pixels, y=digits.y, spec=opened.spec)
    episode = dx.data.Episodes(rows=samples, way=10, shot=config.shot, query=config.test // 10, seed=config.seed)[0]
    staged = dx.split(opened.model, torch.zeros(1, *opened.spec.shape), after=config.after)
    net = dx.attach(staged, dx.heads.pooled_heads(opened.num_classes), seed=config.seed)

    results = {}
    for name, how in {"class means": {}, "heads": {"steps": config.steps, "lr": config.lr}}.items():
        adapted = dx.meta.adapt(net, episode.support, max_drop=config.max_drop, seed=config.seed, **how)
        table = dx.meta.evaluate_episodes(net, [episode], count=1, progress=False, **how).table
        outcome = dx.simulate(table, adapted.policy)
        results[name] = {
            "exits": table.right_ne.double().mean(0).tolist(),
            "accuracy": outcome.accuracy,
            "saved": outcome.saved,
        }
        recipe = dx.meta.recipe_with_classes(opened.recipe, 10)
        dx.save(
            adapted.net, config.folder / name.replace(" ", "_"), policy=adapted.policy, spec=opened.spec,
            model_recipe=recipe, table=adapted.table,
        )  # fmt: skip
    return results


if __name__ == "__main__":
    recipe_cli(PAPER, SMOKE, main)
