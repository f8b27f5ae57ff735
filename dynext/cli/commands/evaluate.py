"""``dynext evaluate``: what the dynamic net loses and saves on real samples, and thresholds chosen anew on such."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import click

from dynext.cli.shared.classes import episode_options
from dynext.cli.shared.evaluate_episodes import judge_on_episodes
from dynext.cli.shared.folder import write_folder
from dynext.cli.shared.options import (
    artifact_options,
    classes_of,
    data_options,
    device_option,
    json_option,
    open_artifact,
)
from dynext.cli.shared.pictures import first_and_last, load_pictures
from dynext.cli.shared.samples import Watched, open_samples, unlabelled_samples
from dynext.cli.shared.show import columns, points, print_json
from dynext.data.class_lists import ClassList
from dynext.data.samples import Samples
from dynext.errors import PolicyError, SourceError
from dynext.io.artifact import Artifact
from dynext.net.collect import collect
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.choose import DEFAULT_MAX_DROP, choose
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable
from dynext.policy.unproven import WhenUnsafe
from dynext.reporting.report import Report, report
from dynext.zeroshot.convert_checks import pixels_digest
from dynext.zeroshot.cross_fit import recalibrated
from dynext.zeroshot.few_images import Judged, too_few, without_images
from dynext.zeroshot.settings import Target
from dynext.zeroshot.thresholds import CAUTION, choose_cautiously

LEAST_UNSEEN = 20
"""Images that are worth choosing by, where the exits know the others."""

BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@click.command(short_help="What the dynamic net loses and saves on test samples.")
@artifact_options
@data_options(required=False)
@click.option(
    "--unlabelled", metavar="DATA", help="Instead of --data: images without labels (a folder, a .npz file, bundled)."
)
@click.option("--choose", "choosing", is_flag=True, help="With --unlabelled: choose thresholds on them and save these.")
@click.option(
    "--max-drop", type=click.FloatRange(0, 1), help="With --choose: accuracy that may be lost.  [default: 0.01]"
)
@click.option(
    "--budget", type=click.FloatRange(min=0, min_open=True), help="With --choose: share of the MACs to spend."
)
@click.option(
    "--when-unsafe", type=click.Choice(get_args(WhenUnsafe)), default="static", show_default=True,
    help="With --choose: where nothing is proven safe, the static net or the least unsafe.",
)  # fmt: skip
@click.option(
    "--episodes", type=click.IntRange(min=1), is_flag=False, flag_value=600,
    help="Few-shot: learn and answer so many episodes of --data; alone 600.",
)  # fmt: skip
@episode_options
@device_option
@json_option
def evaluate(
    folder: Path,
    model: str | None,
    arguments: tuple[tuple[str, Any], ...],
    trust: bool,
    data: str | None,
    root: Path | None,
    download: bool,
    listed: ClassList | None,
    strict: bool,
    unlabelled: str | None,
    choosing: bool,
    max_drop: float | None,
    budget: float | None,
    when_unsafe: WhenUnsafe,
    episodes: int | None,
    device: str,
    as_json: bool,
    **shaped: Any,
) -> None:
    """Judge the dynamic net in DIR on test samples: at its saved policy, and along budgets.

    With labels (a data set, a .npz with y, a folder with one sub-folder a class) it tells accuracy; without, agreement
    with the full net. Thresholds are never chosen on test samples.

    Sub-folders are called like the net's classes (T-shirt_top is T-shirt/top), by WordNet ids, or 0, 1 and so on; or a
    class_to_idx.json beside them, or --class-names, says which is which. Classes may be missing.

    With --unlabelled a few hundred images of the kind that the net now sees are enough to check its thresholds, which
    were chosen on others or on synthesized ones; and to choose them anew in seconds (--choose), with class biases that
    put right what exits say too often.

    With --episodes it tells how well each exit learns new classes of --data (digits, omniglot:small2, a folder a class)
    from --shot images of each.

    \b
    Example: dynext evaluate fashion --data fashion-mnist
             dynext evaluate fashion --unlabelled photos --choose
    """
    if (data is None) == (unlabelled is None):
        raise click.UsageError(
            "give --data DATA to judge on, or --unlabelled DATA to check the thresholds on; not both"
        )
    if not choosing and (max_drop is not None or budget is not None or when_unsafe != "static"):
        raise click.UsageError("--max-drop, --budget and --when-unsafe are wishes about thresholds; give --choose too")
    if choosing and unlabelled is None:
        raise click.UsageError("--choose takes --unlabelled images, never the test samples of --data")
    kept = open_artifact(folder, model, arguments, trust=trust)
    if episodes is not None:
        if data is None:
            raise click.UsageError("--episodes are drawn from labelled --data; give some, such as digits")
        kept.net.to(device)
        judge_on_episodes(
            folder, kept, data, opened={"root": root, "download": download, "strict": strict}, count=episodes,
            shaped=shaped, as_json=as_json,
        )  # fmt: skip
        return
    if unlabelled is not None:
        rows = unlabelled_samples(unlabelled, kept.spec, strict=strict)
        kept.net.to(device)
        target = Target(max_drop=max_drop, budget=budget, when_unsafe=when_unsafe) if choosing else None
        _check(folder, kept, rows, unlabelled, target, as_json)
        return
    assert data is not None  # noqa: S101
    classes = classes_of(kept, listed)
    rows, words = open_samples(data, kept.spec, root=root, download=download, classes=classes, strict=strict)
    judged = _Judged(net=kept.net.to(device), rows=rows, words=words)
    saved = judged.report(kept.policy)
    along = [] if kept.table is None else _along_budgets(kept.table, kept.policy, judged)
    if as_json:
        budgets = [{"budget": budget, "report": outcome.to_dict() if outcome else None} for budget, outcome in along]
        print_json({"folder": str(folder), "saved_policy": saved.to_dict(), "budgets": budgets})
        return
    click.echo(f"{saved}\n")
    if kept.table is None:
        click.echo("No budgets: the folder keeps no table to choose other thresholds on.")
        return
    click.echo(f"Along budgets, thresholds chosen on {kept.table.rows} (none of the samples above):")
    click.echo(columns([_titles(saved), *(_cells(budget, outcome, saved) for budget, outcome in along)], left=()))


def _check(
    folder: Path,
    kept: Artifact,
    rows: Samples,
    unlabelled: str,
    target: Target | None,
    as_json: bool,
) -> None:
    """The saved thresholds on images without labels, and better ones in their place where there is a target."""
    if pixels_digest(rows) == kept.provenance.get("distilled_on_pixels"):
        raise SourceError(
            f"the exits were distilled on the images of {unlabelled}, and agree there more than on others; give images "
            f"that they have not seen"
        )
    rows, told = _unseen(kept.net, rows, unlabelled)
    judged = _Judged(net=kept.net, rows=rows, words=told)
    before = now = judged.report(kept.policy)
    if target is not None:
        net, policy, table = _chosen(judged, kept, target)
        now = report(table, policy)
        pictures = {**load_pictures(folder), **first_and_last(table, policy, rows)}
        untimed = {key: value for key, value in kept.provenance.items() if key not in ("timing", "timed_on")}
        write_folder(
            folder,
            net.cpu(),
            kept,
            policy=policy,
            table=table,
            provenance={**untimed, "target": asdict(target), "thresholds": f"chosen anew on {told}"},
            pictures=pictures,
            same_net=True,
        )
    if as_json:
        chosen = None if target is None else now.to_dict()
        print_json({"folder": str(folder), "saved_policy": before.to_dict(), "chosen_policy": chosen})
        return
    click.echo(before)
    if target is not None:
        click.echo(f"\nThresholds chosen anew, and saved in {folder}:\n\n{now}")
    elif before.drop_at_most is not None and before.drop_at_most > DEFAULT_MAX_DROP:
        click.echo("\nMore than a point may be lost; --choose picks thresholds for these images.")


def _unseen(net: DynamicNet, rows: Samples, unlabelled: str) -> tuple[Samples, str]:
    """Those of the images that the exits have not learned from, and what they are in words.

    Raises:
        SourceError: too few of them to choose by.
    """
    known_n = net.seen.known_of(rows)
    known, left = int(known_n.sum()), int((~known_n).sum())
    if known and left < LEAST_UNSEEN:
        raise SourceError(
            f"the exits were distilled on {known:,} of the {len(rows):,} images of {unlabelled}, and agree there more "
            f"than on others; give {LEAST_UNSEEN} or more that they have not seen"
        )
    told = f"{left:,} unlabelled samples of {unlabelled}"
    if not known:
        return rows, told
    return rows.subset((~known_n).nonzero()[:, 0]), f"{told} ({known:,} that the exits were distilled on left out)"


def _chosen(judged: _Judged, kept: Artifact, target: Target) -> tuple[DynamicNet, Policy, ExitTable]:
    """Thresholds as `dx.convert` takes them from calibration samples, class biases included where nothing is
    skipped; the saved ones where the images are too few to judge by and do not contradict these.
    """
    net, wishes = judged.net, asdict(target)
    if net.gates is None:
        net, table = recalibrated(net, judged.table(None))
        policy = choose_cautiously([table], **wishes)
    else:
        tables = [judged.table(rule) for rule in dict.fromkeys((None, kept.policy.skip_rule))]
        policy = choose_cautiously(tables, **wishes)
        table = judged.table(policy.skip_rule)
    loss = target.loss
    if loss and too_few(len(table), CAUTION * loss) and _was_chosen_within(kept, loss):
        known = Judged(policy=kept.policy, table=judged.table(kept.policy.skip_rule))
        by_images = Judged(policy=policy, table=table)
        taken = without_images(known, by_images, max_drop=loss, allowed=CAUTION * loss)
        if taken is not None:
            return judged.net, taken.policy, taken.table
    return net, policy, table


def _was_chosen_within(kept: Artifact, loss: float) -> bool:
    """Whether the saved thresholds were to lose no more than that."""
    asked = kept.provenance.get("target") or {}
    if not asked or asked.get("budget") is not None:
        return False
    return (asked.get("max_drop") or DEFAULT_MAX_DROP) <= loss


@dataclass(eq=False)
class _Judged:
    """One net on one set of samples, a table for each skip rule that is asked for.

    The full net is this one with nothing skipped, as training left it.
    """

    net: DynamicNet
    rows: Samples
    words: str
    tables: dict[tuple[float | None, ...] | None, ExitTable] = field(default_factory=dict)

    def table(self, rule: tuple[float | None, ...] | None) -> ExitTable:
        if rule not in self.tables:
            self.tables[rule] = collect(self.net, Watched(rows=self.rows), keep=rule, rows=self.words)
        return self.tables[rule]

    def report(self, policy: Policy) -> Report:
        return report(self.table(policy.skip_rule), policy)


def _along_budgets(chosen_on: ExitTable, policy: Policy, judged: _Judged) -> list[tuple[float, Report | None]]:
    """A report for each budget; none where no policy meets it."""
    reports: list[tuple[float, Report | None]] = []
    for budget in BUDGETS:
        try:
            there = choose(chosen_on, budget=budget, temperature=policy.temperature_e, confidence=policy.confidence)
        except PolicyError:
            reports.append((budget, None))
        else:
            reports.append((budget, judged.report(there)))
    return reports


def _titles(saved: Report) -> tuple[str, ...]:
    return ("budget", "MACs", "saved", "agreement" if saved.accuracy is None else "accuracy", "points lost", "exits on")


def _cells(budget: float, outcome: Report | None, saved: Report) -> tuple[str, ...]:
    if outcome is None:
        return (f"{budget:.0%}", "-", "-", "-", "-", "not within reach")
    right, static = (
        (outcome.agreement, 1.0) if outcome.accuracy is None else (outcome.accuracy, outcome.static_accuracy or 0.0)
    )
    on = " ".join(str(line.exit) for line in outcome.exits if line.on)
    spent = outcome.macs / max(outcome.static_macs, 1)
    return (f"{budget:.0%}", f"{spent:.1%}", f"{outcome.saved:.1%}", f"{right:.2%}", points(static - right), on)
