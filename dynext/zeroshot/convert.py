"""The main job in one call: a pretrained static classifier in, a dynamic net and its policy out, without its data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from dynext.brief import short_repr
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable
from dynext.types import Data, InputSpec, Source
from dynext.usual_modes import in_usual_modes
from dynext.zeroshot import convert_steps as step
from dynext.zeroshot.convert_checks import checked
from dynext.zeroshot.settings import Exits, Frozen, Run, Synthesis, Target, Training, Unlabelled


@dataclass(frozen=True, kw_only=True, eq=False)
class Conversion:
    """What `convert` gives: the dynamic net, its policy, the table the policy was chosen on, and how it came about."""

    __repr__ = short_repr

    net: DynamicNet
    policy: Policy
    table: ExitTable
    spec: InputSpec
    samples: Source = field(repr=False)
    """What the exits were distilled on: the synthesized bank, or the samples that were given."""
    provenance: dict[str, Any]
    """JSON: the settings as they were given, and what was found out on the way."""


@in_usual_modes
def convert(
    teacher: nn.Module,
    example: Tensor | InputSpec | None = None,
    *,
    calibrate: Data | Unlabelled | None = None,
    exits: Exits = Exits(),
    synthesis: Synthesis | Data = Synthesis(),
    training: Training = Frozen(),
    target: Target = Target(),
    run: Run = Run(),
) -> Conversion:
    """Turn ``teacher`` into a dynamic net without its training data; the teacher itself is not changed.

    Split, attach exits, synthesize samples out of the teacher, distil the exits on them, choose temperatures and
    thresholds. Without ``calibrate`` these are chosen on further synthesized samples of two kinds, hold on the worse of
    the two, and are the more cautious the more the kinds differ; a policy that lets nobody leave is then a possible,
    honest outcome. Progress is logged by the logger ``dynext``.

    Args:
        example: one batch of input ``[b c h w]``, of any size, of which only the shape is used; or an `InputSpec`,
            which says the normalization too. Without a spec it is that of the samples that are given, without any mean
            .5 and std .25 for the example's channels.
        calibrate: a few hundred *unlabelled* real samples for temperatures, class biases and thresholds;
            ``Unlabelled(samples, distill=True)`` distils on them as well. In any form that `dynext.data.as_source`
            takes, labels are dropped; ``example`` must then be an `InputSpec`, unless net or samples know theirs.
        synthesis: how samples are synthesized; or samples to distil on instead: a bank from before, or many unlabelled
            real ones, in any form too.
        training: `Frozen`, `Joint` or `Skip`.

    Raises:
        SplitError, SourceError, PolicyError: what cannot be cut, fed or chosen, with what to do; a net that answers
            probabilities instead of logits is among it.
        FitError: a folder that another conversion began in.
    """
    task = checked(teacher, example, calibrate, exits, synthesis, training, target, run)
    net = step.attached(task)
    task = step.planned(task, net)
    samples = step.samples_to_distil_on(task)
    students = step.taught(task, net, samples)
    decided = step.decided_without_images(task, students) if task.calibrate is None else step.decided(task, students)
    return Conversion(
        net=decided.net,
        policy=decided.policy,
        table=decided.table,
        spec=task.spec,
        samples=samples,
        provenance=step.told(task, samples, students, decided),
    )
