"""A dynamic net for what a few labelled samples show: new classes or the same, thresholds and temperatures with it.

Shapes: n support samples, e exits, k classes.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import Unpack

from dynext.brief import short_repr
from dynext.data.given import takes_data
from dynext.data.indexing import by_index
from dynext.errors import SourceError
from dynext.meta.adapt_config import AdaptConfig, AdaptOptions, adapt_config, as_start
from dynext.meta.adapt_steps import SupportLearner
from dynext.meta.functional import Learner
from dynext.meta.new_classes import with_classes
from dynext.meta.norms import settle
from dynext.meta.start import MetaStart
from dynext.net.collect import marked, table_of
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.calibrate import Calibration, calibrate
from dynext.policy.choose import choose
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable
from dynext.types import Batch, Data, InputSpec, Source
from dynext.usual_modes import in_usual_modes

FOLDS = 32
"""Up to this many samples each is left out alone; of more samples, groups are, at most so many, one after the other."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Adaptation:
    """The adapted net, when to stop, and the table which that was chosen on."""

    __repr__ = short_repr

    net: DynamicNet
    policy: Policy
    table: ExitTable | None
    """Each support sample as answered by exits that had not seen it; ``None`` where a policy was given."""
    calibration: Calibration | None


@in_usual_modes
@takes_data("support", besides=(Batch,), own_classes=True)
def adapt(
    net: DynamicNet | MetaStart,
    support: Data | Batch,
    *,
    policy: Policy | None = None,
    max_drop: float = 0.02,
    seed: int = 0,
    spec: InputSpec | None = None,
    **options: Unpack[AdaptOptions],
) -> Adaptation:
    """A new net that has learned the ``support`` samples at every exit, with a policy; the given one is left alone.

    Temperatures and thresholds come from the support samples, each answered by exits that learned without it
    (leave-one-out). A few samples carry no confidence bound: thresholds are those that lose at most ``max_drop`` there,
    and the policy's note says on how many samples.

    Args:
        policy: thresholds and temperatures chosen elsewhere, such as on other episodes: what one sample a class needs.
        max_drop: accuracy on the support samples that thresholds may lose.
        steps: gradient steps; what a meta-learned start was trained for, else 3 with a ``method`` that takes some, and
            none without one.
        method: ``"prototypes"`` makes class means the classifiers, without a gradient; else which parameters the steps
            change, as `dx.meta.ownership` prints them: ``"head"`` (the default with ``steps``), ``"classifier"``,
            ``"owned"`` or ``"used"``, where the trunk steps on the sum of all exits' losses.
        lr: step size; what a meta-learned start was trained with, else 0.1, halved where the loss on the support
            samples would rise.
        classifiers: what steps start from. ``"prototypes"`` for a new set of classes (the default for a net that was
            not meta-learned, or for class means), ``"kept"`` for the net's own classes, and for a start that was
            meta-learned for any.
        bn: ``"frozen"`` normalizes by the net's running statistics; ``"task"`` gives the new net those of the support
            samples; ``"per_step"`` is for a start that was meta-trained so. Without it what the gradient steps of a
            meta-learned start were trained on, else ``"frozen"``.

    Raises:
        SourceError: no samples, no labels or no class numbers, one class, a class without a sample or (without
            ``policy``) with one alone, labels that are not the net's (``classifiers="kept"``), or samples of another
            shape than the net expects, or with NaN in them.
        FitError: arguments out of range, a cascade, or a net whose last classifier cannot be replaced.
        PolicyError: a policy for another number of exits.

    Source: leave-one-out with class means costs nothing extra in the trunk; for gradient steps on class means see
    Proto-MAML, Triantafillou et al., ICLR 2020, arXiv:1903.03096.
    """
    start, config = as_start(net), adapt_config(net, options)
    x, y_n = support_samples(start.net, support, kept=config.classifiers == "kept")
    if policy is None:
        check_two_each(y_n)
    else:
        policy.check_exits(start.net.num_exits)
    learner = learner_for(start, config, int(y_n.max()) + 1, seed=seed)
    like = next(learner.net.parameters())
    x, y_n = x.to(like), y_n.to(like.device)
    adapted = adapted_net(learner, x, y_n)
    if policy is not None:
        return Adaptation(net=adapted, policy=policy, table=None, calibration=None)
    logits_nek = left_out_logits(learner, x, y_n, seed=seed)
    table = table_of(adapted, logits_nek.cpu(), label_n=y_n.cpu(), rows=f"{len(y_n)} support samples, each left out")
    table = marked(table, adapted.seen.known(x))
    calibration = calibrate(table)
    chosen = choose(table, max_drop=max_drop, temperature=calibration, rule="plain")
    return Adaptation(net=adapted, policy=chosen, table=table, calibration=calibration)


def support_samples(net: DynamicNet, support: Source | Batch, *, kept: bool) -> tuple[Tensor, Tensor]:
    """Samples ``[n ...]`` and labels ``[n]`` that something can be learned from; ``kept``: for the net's own
    classes.
    """
    if not len(support.x if isinstance(support, Batch) else support):
        raise SourceError("there is not one support sample; give some of each class")
    batch = support if isinstance(support, Batch) else by_index(support)(torch.arange(len(support)))
    if tuple(batch.x.shape[1:]) != net.staged.input_shape:
        raise SourceError(
            f"support samples of shape {tuple(batch.x.shape[1:])}; the model expects {net.staged.input_shape} "
            f"(a folder of images is fitted to it: dx.data.images)"
        )
    if batch.y is None:
        raise SourceError("the support samples have no labels; give each its class, counted from 0")
    if batch.y.shape != batch.x.shape[:1] or batch.y.is_floating_point() or int(batch.y.min()) < 0:
        raise SourceError(
            f"labels {list(batch.y.shape)} of {batch.y.dtype} from {batch.y.min().item()} for {len(batch.x)} support "
            f"samples; give each sample the number of its class, counted from 0"
        )
    classes = batch.y.unique().tolist()
    if len(classes) < 2:
        raise SourceError(
            f"all support samples are of one class ({classes[0]}); there is nothing to tell it from, give two"
        )
    if kept and classes[-1] >= net.num_classes:
        raise SourceError(
            f"a support sample is of class {classes[-1]}, the net knows {net.num_classes}; "
            f"give classifiers='prototypes' for a new set of classes"
        )
    absent = sorted(set(range(classes[-1] + 1)) - set(classes))
    if not kept and absent:
        raise SourceError(f"no support sample of class {absent[0]}; number the classes from 0 without gaps")
    broken = (~batch.x.isfinite().flatten(1).all(1)).nonzero()[:, 0].tolist()
    if broken:
        raise SourceError(f"support sample {broken[0]} holds NaN or infinite numbers; leave it out, or mend it")
    return batch.x, batch.y.long()


def check_two_each(y_n: Tensor) -> None:
    """Refuse a class with one sample: left out, nothing would be known of it."""
    classes, counts = y_n.unique(return_counts=True)
    alone = classes[counts < 2].tolist()
    if alone:
        raise SourceError(
            f"class {alone[0]} has one support sample; thresholds are chosen by leaving samples out, which takes two "
            f"of each class. Give another, or policy= with thresholds from elsewhere (dx.meta.evaluate_episodes)"
        )


def learner_for(start: MetaStart, config: AdaptConfig, num_classes: int, *, seed: int = 0) -> SupportLearner:
    """The net made ready for so many classes; a net that has as many is taken as it is."""
    if config.classifiers == "prototypes" and num_classes != start.net.num_classes:
        net = with_classes(start.net, num_classes, seed=seed)
        start = MetaStart(net=net, inner=start.inner, step_sizes=start.step_sizes, statistics=start.statistics)
    return SupportLearner(start, config)


def adapted_net(learner: SupportLearner, x: Tensor, y_n: Tensor) -> DynamicNet:
    """A copy of the learner's net with what it learns from the samples, and the statistics that it then runs on."""
    changed = learner.learned(x, y_n)
    net = copy.deepcopy(learner.net).eval()
    own = dict(net.named_parameters())
    with torch.no_grad():
        for name, tensor in changed.items():
            own[name].copy_(tensor)
        if learner.norms.statistics is not None:
            buffers = dict(net.named_buffers())
            for name, tensor in learner.norms.statistics.at(learner.config.steps).items():
                buffers[name].copy_(tensor)
    if learner.config.bn == "task":
        settle(Learner(net, range(net.num_exits)), x)
    return net


def left_out_logits(learner: SupportLearner, x: Tensor, y_n: Tensor, *, seed: int) -> Tensor:
    """Each sample's logits ``[n e k]`` from exits that learned without it.

    Groups are drawn within each class, so that a class never vanishes. The trunk is run once for all groups, but with
    ``bn="task"``, whose statistics are those of the samples at hand.
    """
    group_n = _groups(y_n, seed)
    shared = None if learner.config.bn == "task" else learner.features(x)
    logits_nek = torch.empty(len(y_n), learner.net.num_exits, learner.net.num_classes)
    for group in group_n.unique().tolist():
        out_n = group_n == group
        support_x = x[~out_n]
        features = learner.features(support_x) if shared is None else shared.subset(~out_n)
        changed = learner.learned_from(features, y_n[~out_n])
        logits_nek[out_n] = learner.logits(changed, x[out_n], support_x).cpu()
    return logits_nek


def _groups(y_n: Tensor, seed: int) -> Tensor:
    """Which group each sample is left out with ``[n]``."""
    if len(y_n) <= FOLDS:
        return torch.arange(len(y_n))
    draw = torch.Generator().manual_seed(seed)
    least = int(y_n.unique(return_counts=True)[1].min())
    groups = min(FOLDS, max(least, 2))
    group_n = torch.empty(len(y_n), dtype=torch.int64)
    offset = 0
    for label in y_n.unique().tolist():
        of_class = (y_n == label).nonzero()[:, 0].cpu()
        order = of_class[torch.randperm(len(of_class), generator=draw)]
        group_n[order] = (torch.arange(len(order)) + offset) % groups
        offset += math.ceil(len(order) / groups)
    return group_n
