"""Classes that exits have never seen: few shots at every exit, and the final exit's own knowledge at the early ones.

Some classes are held out of everything that the exits learn from; the full net knows them. After alignment each exit
classifies by prototypes of a few labelled images (all classes), and by the final classifier's class vectors (no image
of them at all). Run `python recipes/align_few_shot.py held_out=2,5,8 shots=5`; a killed run goes on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch

import dynext as dx
from dynext.recipe import recipe_cli


@dataclass(frozen=True, kw_only=True)
class Config:
    """The bundled Fashion-MNIST net; pullovers, sandals and bags held out."""

    model: str = "bundled:fashion_resnet20"
    after: tuple[float, ...] = (0.15, 0.3, 0.45, 0.7)
    held_out: tuple[int, ...] = (2, 5, 8)
    loss: Literal["cosine", "ntxent", "barlow", "vicreg", "selfcon", "l2"] = "cosine"
    weight: float | None = None
    steps: int = 2000
    rows: int = 8192
    apart: int = 8192
    """Images kept apart: examples come from them, and unlabelled they show what the full net takes for a class."""
    shots: int = 5
    draws: int = 5
    """How often the labelled examples are drawn anew; figures are means."""
    test: int = 10_000
    seed: int = 0
    folder: Path = Path("runs/align_few_shot")


PAPER = Config()
SMOKE = replace(
    PAPER, after=(0.15, 0.3), steps=3, rows=60, apart=120, shots=1, draws=1, test=64, folder=Path("runs/smoke_few")
)


def main(config: Config) -> dict[str, object]:
    opened = dx.open_model(config.model)
    train = dx.data.fashion_mnist("train")
    test = dx.data.fashion_mnist("test").subset(torch.arange(config.test))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed))
    apart, rest = train.subset(order[: config.apart]), train.subset(order[config.apart :])
    known = ~torch.isin(rest.y, torch.tensor(config.held_out))
    taught = rest.subset(known.nonzero()[: config.rows, 0]).unlabelled()

    staged = dx.split(opened.model, torch.zeros(1, *opened.spec.shape), after=config.after)
    net = dx.attach(staged, dx.default_heads(staged.num_classes), seed=config.seed)
    aligned = dx.align.align_exits(
        net,
        taught,
        term=dx.align.AlignmentTerm(loss=config.loss, weight=config.weight),
        classes=[k for k in range(opened.num_classes) if k not in config.held_out],
        steps=config.steps,
        seed=config.seed,
        checkpoint=config.folder / f"{config.loss}.ckpt",
    )
    print(aligned)
    accuracy = {"few_shot": few_shot(config, aligned, apart, test)}
    for name, samples in (("zero_shot_by_weights", None), ("zero_shot_by_final_prototypes", apart.unlabelled())):
        if samples is None and config.loss not in ("cosine", "l2"):
            continue
        knowing = dx.align.zero_shot(aligned.net, aligned.space, rows=samples)
        held_out = dx.align.held_out_accuracy(dx.collect(knowing, test).logits_nek, test.y, config.held_out)
        accuracy[name] = {**asdict(held_out), "harmonic_e": held_out.harmonic_e}
    return accuracy


def few_shot(
    config: Config, aligned: dx.align.Alignment, apart: dx.data.Samples, test: dx.data.Samples
) -> dict[str, list[float]]:
    """Accuracy at every exit among all classes, by prototypes in its own embedding and in the aligned space.

    `dx.align.few_shot` gives the same as a net that runs; here embeddings are taken once for all draws.
    """
    known, asked = dx.align.embed(aligned.net, apart), dx.align.embed(aligned.net, test)
    project, means = aligned.space.project, {}
    for name, (shown, tested) in (("embedding", (known, asked)), ("space", (project(known), project(asked)))):
        shares = []
        for draw in range(config.draws):
            index = dx.align.draw_shots(apart.y, config.shots, seed=config.seed + draw)
            classes = dx.align.prototypes(shown.subset(index).embedding_e, apart.y[index], center_on=shown.embedding_e)
            right_ne = classes.logits(tested.embedding_e).argmax(-1) == test.y[:, None]
            shares.append(right_ne.double().mean(0))
        means[name] = torch.stack(shares).mean(0).tolist()
    return means


if __name__ == "__main__":
    recipe_cli(PAPER, SMOKE, main)
