"""Images that are too few to judge a loss by: what is known without them then decides, unless they contradict it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from dynext.policy.bounds import upper_bound
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable
from dynext.reporting.report import DELTA, report


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """A policy, and what the images say of it."""

    policy: Policy
    table: ExitTable


def too_few(images: int, allowed: float) -> bool:
    """Whether not even a net that loses none of so many images is shown to lose ``allowed`` at most.

    >>> [too_few(298, 0.01), too_few(299, 0.01)]
    [True, False]
    """
    return bool(upper_bound(0, images, DELTA) > allowed)


def without_images(known: Judged, by_images: Judged, *, max_drop: float, allowed: float) -> Judged | None:
    """What is ``known`` without the images, its note saying so, where it saves more than what was chosen by them and
    loses no more than ``max_drop`` on them; else ``None``.

    The images have then chosen between two policies only, whose better one was there before they came.

    Args:
        allowed: of ``max_drop``, what a policy that is chosen by images may use up.
    """
    outcome, other = report(known.table, known.policy), report(by_images.table, by_images.policy)
    lost = 1 - outcome.agreement if outcome.drop is None else outcome.drop
    if outcome.saved <= max(other.saved, 0.0) or lost > max_drop:
        return None
    enough = math.ceil(math.log(DELTA) / math.log1p(-allowed))
    told = (
        f"{len(known.table):,} images are too few to judge a loss of {max_drop:.2%} by ({enough:,} with none lost "
        f"would be enough; by them alone {max(other.saved, 0.0):.1%} would be saved) and do not contradict what is "
        f"known without them: {lost:.2%} lost and {outcome.saved:.1%} saved on them"
    )
    policy = known.policy
    return replace(known, policy=replace(policy, note=f"{policy.note.rstrip('. ')}. {told}."))
