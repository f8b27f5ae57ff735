"""``dynext align``: exits that see as the last exit sees, with thresholds chosen anew."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click
import torch

from dynext.align.augmentations import Augmentations
from dynext.align.losses import Loss
from dynext.align.report import Rechosen, compared, rechoose
from dynext.align.result import Alignment
from dynext.align.settings import AlignmentTerm, Trunk
from dynext.align.train import align_exits
from dynext.cli.shared.folder import write_folder
from dynext.cli.shared.options import (
    artifact_options,
    device_option,
    json_option,
    open_artifact,
    output_option,
    seed_option,
    strict_option,
)
from dynext.cli.shared.pictures import first_and_last, load_pictures
from dynext.cli.shared.samples import unlabelled_samples
from dynext.cli.shared.show import print_json
from dynext.cli.shared.work import forget_work, forgets_refused, work_folder
from dynext.data.datasets import fashion_mnist
from dynext.data.samples import Samples
from dynext.errors import SourceError
from dynext.io.artifact import Artifact
from dynext.net.dynamic_net import DynamicNet
from dynext.seeding import generator
from dynext.zeroshot.bank import HEAD, Bank
from dynext.zeroshot.synth.synthesize import synthesize
from dynext.zeroshot.thresholds import choose_unseen

METHOD = "fitted"
"""How samples are synthesized where there are none."""

APART = 1000
"""Most real samples that are kept apart for thresholds; a quarter of them where that is less."""


VIEWS = {0: None, 1: Augmentations(count=1), 2: Augmentations(count=2)}


@click.command(short_help="Make exits see as the last exit sees.")
@artifact_options
@click.option(
    "--source", required=True, metavar="DATA",
    help="bank (samples made from the net), fashion-mnist, bundled, a folder of images or of a bank, or a .npz file.",
)  # fmt: skip
@output_option("-o", "--output", help="Where the aligned net goes; into DIR itself without it.")
@click.option(
    "--loss", type=click.Choice(get_args(Loss)), default="cosine", show_default=True, help="What alike means."
)
@click.option("--weight", type=click.FloatRange(min=0), help="What alignment counts; each loss has its own default.")
@click.option(
    "--trunk", type=click.Choice(get_args(Trunk)), default="frozen", show_default=True,
    help="joint trains the layers before the exits as well.",
)  # fmt: skip
@click.option(
    "--samples",
    "rows",
    type=click.IntRange(min=8),
    default=8192,
    show_default=True,
    help="Most samples to take or make.",
)
@click.option("--steps", type=click.IntRange(min=1), default=2000, show_default=True, help="Steps of training.")
@click.option("--views", type=click.IntRange(0, 2), default=0, show_default=True, help="Random views of each sample.")
@click.option("--drop-conflicts", is_flag=True, help="No alignment on steps where it works against classification.")
@click.option("--max-drop", type=click.FloatRange(0, 1), help="Accuracy that may be lost.  [default: 0.01, a point]")
@click.option("--budget", type=click.FloatRange(min=0, min_open=True), help="Share of the static net's MACs to spend.")
@click.option("--root", type=click.Path(exists=True, path_type=Path), help="Where Fashion-MNIST lies.")
@strict_option
@seed_option
@device_option
@json_option
@forgets_refused
def align(
    folder: Path,
    model: str | None,
    arguments: tuple[tuple[str, Any], ...],
    trust: bool,
    source: str,
    output: Path | None,
    loss: Loss,
    weight: float | None,
    trunk: Trunk,
    rows: int,
    steps: int,
    views: int,
    drop_conflicts: bool,
    max_drop: float | None,
    budget: float | None,
    root: Path | None,
    strict: bool,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Align the exits of the dynamic net in DIR with its last exit, on DATA whose labels are not used.

    Exits learn to answer as the full net does and, through heads that are dropped afterwards, to see samples as it
    does. Confidences move: temperatures and thresholds are chosen anew, on samples kept apart, and told before and
    after. A run that was interrupted goes on when the same command is run again.

    \b
    Example: dynext align fashion --source fashion-mnist --loss cosine
    """
    kept = open_artifact(folder, model, arguments, trust=trust)
    where = folder if output is None else output
    asked = {
        "source": source, "loss": loss, "weight": weight, "trunk": trunk, "rows": rows, "steps": steps,
        "views": views, "drop_conflicts": drop_conflicts, "seed": seed,
    }  # fmt: skip
    work = work_folder(where, kept.net, None, asked)
    before = kept.net.to(device)
    given = _Given.of(source, kept, before, rows=rows, seed=seed, opened={"root": root, "strict": strict}, work=work)
    alignment = align_exits(
        before,
        given.taught,
        term=AlignmentTerm(loss=loss, weight=weight, drop_conflicts=drop_conflicts),
        trunk=trunk,
        augmentations=VIEWS[views],
        steps=steps,
        seed=seed,
        checkpoint=work / "aligning.ckpt",
        accelerator=device,
    )
    rechosen = given.rechosen(before, alignment.net, kept, max_drop, budget)
    _write(where, folder, kept, alignment, rechosen, given)
    forget_work(where)
    if as_json:
        print_json({"folder": str(where), "alignment": alignment.to_dict(), **rechosen.to_dict()})
        return
    click.echo(f"{alignment}\n\n{rechosen}\n\nOn {given.words}. Saved in {where}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Given:
    """Samples to align on, others to choose and judge thresholds on, and what they are in words."""

    taught: Samples | Bank
    apart: Samples | Bank
    words: str
    seed: int

    @classmethod
    def of(
        cls, source: str, kept: Artifact, net: DynamicNet, *, rows: int, seed: int, opened: dict[str, Any], work: Path
    ) -> _Given:
        if source == "bank" or (Path(source) / HEAD).is_file():
            bank = _synthesized(net, kept, METHOD, rows, seed, work / "bank") if source == "bank" else Bank.open(source)
            apart = _synthesized(net, kept, "leaves", min(APART, len(bank)), seed + 1, None)
            words = f"{len(apart):,} synthesized samples (leaves)"
            return cls(taught=bank, apart=apart, words=words, seed=seed)
        if source == "fashion-mnist":
            images = replace(fashion_mnist("train", root=opened["root"]).unlabelled(), spec=kept.spec)
        else:
            images = unlabelled_samples(source, kept.spec, strict=opened["strict"])
        order = torch.randperm(len(images), generator=generator(seed))[:rows]
        cut = min(APART, len(order) // 4)
        if cut < 1:
            raise SourceError(
                f"{len(images)} samples in {source}; give 4 at least, a quarter of them is kept for thresholds"
            )
        words = f"{cut:,} unlabelled samples of {source}, kept apart"
        return cls(taught=images.subset(order[cut:]), apart=images.subset(order[:cut]), words=words, seed=seed)

    def rechosen(
        self, before: DynamicNet, aligned: DynamicNet, kept: Artifact, max_drop: float | None, budget: float | None
    ) -> Rechosen:
        """On real samples as these say; on synthesized ones, thresholds must hold on two kinds."""
        if isinstance(self.apart, Samples):
            return rechoose(before, aligned, kept.policy, self.apart, max_drop=max_drop, budget=budget, rows=self.words)
        made = partial(_synthesized, before, kept, seed=self.seed + 2, folder=None)
        unseen = choose_unseen(aligned, before.staged, made, METHOD, max_drop=max_drop, budget=budget)
        return compared(before, aligned, kept.policy, unseen.policy, unseen.table, self.apart)


def _synthesized(net: DynamicNet, kept: Artifact, method: str, n: int, seed: int, folder: Path | None) -> Bank:
    return synthesize(net.staged, shape=kept.spec.shape, n=n, seed=seed, method=method, spec=kept.spec, folder=folder)


def _write(where: Path, folder: Path, kept: Artifact, alignment: Alignment, rechosen: Rechosen, given: _Given) -> None:
    pictures = load_pictures(folder)
    if isinstance(given.apart, Samples):
        pictures |= first_and_last(rechosen.table, rechosen.policy, given.apart)
    untimed = {key: value for key, value in kept.provenance.items() if key not in ("timing", "timed_on")}
    write_folder(
        where,
        alignment.net.cpu(),
        kept,
        policy=rechosen.policy,
        table=rechosen.table,
        provenance={**untimed, "alignment": alignment.to_dict(), "thresholds": f"chosen anew on {rechosen.table.rows}"},
        pictures=pictures,
    )
