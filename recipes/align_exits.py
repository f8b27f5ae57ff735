"""Exits that see as the last exit sees: aligned on synthesized samples or on unlabelled training images, thresholds
anew.

Exits are distilled first and aligned then; both learn from the full net alone. Prints what alignment did, and the
policy before and after. Run `python recipes/align_exits.py loss=vicreg source=bank`; a killed run goes on.
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
    """The bundled Fashion-MNIST net and four exits."""

    model: str = "bundled:fashion_resnet20"
    after: tuple[float, ...] = (0.15, 0.3, 0.45, 0.7)
    source: Literal["bank", "images"] = "images"
    loss: Literal["cosine", "ntxent", "barlow", "vicreg", "selfcon", "l2"] = "cosine"
    weight: float | None = None
    trunk: Literal["frozen", "joint"] = "frozen"
    views: Literal[0, 1, 2] = 0
    rows: int = 8192
    held_out: int = 1000
    """Unlabelled images kept apart for temperatures and thresholds."""
    distill_steps: int = 1000
    steps: int = 2000
    max_drop: float = 0.01
    test: int = 10_000
    seed: int = 0
    folder: Path = Path("runs/align_exits")


PAPER = Config()
SMOKE = replace(
    PAPER, after=(0.15, 0.3), rows=48, held_out=24, distill_steps=3, steps=3, test=48, folder=Path("runs/smoke_align")
)


def main(config: Config) -> dict[str, object]:
    opened = dx.open_model(config.model)
    train = dx.data.fashion_mnist("train").unlabelled()
    test = dx.data.fashion_mnist("test").subset(torch.arange(config.test))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed))
    apart = train.subset(order[: config.held_out])
    samples = training_samples(config, opened, train.subset(order[config.held_out :][: config.rows]))

    staged = dx.split(opened.model, torch.zeros(1, *opened.spec.shape), after=config.after)
    net = dx.attach(staged, dx.default_heads(staged.num_classes), seed=config.seed)
    first = config.folder / "distilled.ckpt"
    before = dx.distill(net, opened.model, samples, steps=config.distill_steps, seed=config.seed, checkpoint=first)
    seen = dx.collect(before, apart)
    policy = dx.choose(seen, max_drop=config.max_drop, temperature=dx.calibrate(seen))

    augmentations = dx.align.Augmentations(count=config.views) if config.views else None
    aligned = dx.align.align_exits(
        before,
        samples,
        term=dx.align.AlignmentTerm(loss=config.loss, weight=config.weight),
        trunk=config.trunk,
        augmentations=augmentations,
        steps=config.steps,
        seed=config.seed,
        checkpoint=config.folder / f"{config.loss}_{config.trunk}_{config.source}.ckpt",
    )
    print(aligned)
    rechosen = dx.align.rechoose(before, aligned.net, policy, apart, judged_on=test, max_drop=config.max_drop)
    print(rechosen)
    reports = {"before": rechosen.before, "stale": rechosen.stale, "after": rechosen.after}
    where = config.folder / "net"
    dx.save(
        aligned.net, where, policy=rechosen.policy, spec=opened.spec, model_recipe=opened.recipe, table=rechosen.table,
        provenance={"alignment": aligned.to_dict()},
    )  # fmt: skip
    return {
        "before": exits(before, test),
        "aligned": exits(aligned.net, test),
        "saved": {when: report.saved for when, report in reports.items()},
        "accuracy": {when: report.accuracy for when, report in reports.items()},
        "net": str(where),
    }


def training_samples(config: Config, opened: dx.Opened, images: dx.data.Samples) -> dx.Source:
    if config.source == "images":
        return images
    bank = config.folder / "bank"
    return dx.synthesize(
        opened.model, shape=opened.spec.shape, n=config.rows, seed=config.seed, spec=opened.spec, folder=bank
    )


def exits(net: dx.DynamicNet, test: dx.data.Samples) -> dict[str, list[float]]:
    """Accuracy of every exit, and how alike its embeddings are to the last exit's (CKA)."""
    seen = dx.align.embed(net, test)
    right_ne = seen.logits_nek.argmax(-1) == test.y[:, None]
    alike = [dx.align.cka(f, seen.embedding_e[-1]) for f in seen.embedding_e]
    return {"accuracy": right_ne.double().mean(0).tolist(), "cka": alike}


if __name__ == "__main__":
    recipe_cli(PAPER, SMOKE, main)
