"""Which channels go: those worth least over all groups, as many as meet a number of MACs.

Shapes: c channels.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from torch import Tensor

from dynext.errors import PlanError
from dynext.net.dynamic_net import DynamicNet
from dynext.prune.channel_worth import Worth
from dynext.prune.channels import Channels, bake
from dynext.prune.cutting import Trial, sound
from dynext.prune.mac_accounting import CutCandidate, MacAccounting
from dynext.prune.plan import Cut

KEEP = 0.1
"""Share of a group's channels that stays whatever the budget."""


class ChannelChoice:
    """The groups of channels of ``net`` that may go, with what each channel is worth."""

    def __init__(self, net: DynamicNet, worth: Worth) -> None:
        self.net, self.channels = net, Channels(net)
        self.candidates = _candidates(net, self.channels, worth)

    def cuts(self, allowed_macs: float) -> tuple[Cut, ...]:
        """Cuts that leave ``allowed_macs``, as predicted, and that `dynext.prune.apply_plan` takes.

        Candidates were tried with every other channel; where a shortcut pads channels, other ones may still be unsound.

        Raises:
            PlanError: so few MACs are out of reach.
        """
        while True:
            cuts = self._cheapest(allowed_macs)
            trials = [(cut.layer, cut.channels) for cut in cuts if self._enough(cut)]
            sure = {layer for layer, _ in sound(self.net, self.channels, trials)}
            unsound = {cut.layer for cut in cuts} - sure
            if not unsound:
                return cuts
            self.candidates = [candidate for candidate in self.candidates if candidate.layer not in unsound]

    def _cheapest(self, allowed_macs: float) -> tuple[Cut, ...]:
        """The fewest channels, those worth least, whose removal meets ``allowed_macs``."""
        order = sorted(
            (float(worth), index, channel)
            for index, candidate in enumerate(self.candidates)
            for channel, worth in enumerate(_removable(candidate.worth_c))
            if worth < float("inf")
        )
        accounting = MacAccounting(self.net, self.channels, self.candidates)
        least, whole = accounting.macs(_first_channels(order, len(order))), max(self.net.staged.macs, 1)
        if least > allowed_macs:
            held = sorted(self.channels.computed)
            raise PlanError(
                f"the budget of {allowed_macs / whole:.1%} of the MACs is out of reach: removing all but {KEEP:.0%} of "
                f"every group of channels that may go leaves {least / whole:.1%}{f'; {bake(held)}' if held else ''}"
            )
        enough = bisect_left(
            range(len(order)), True, key=lambda count: accounting.macs(_first_channels(order, count)) <= allowed_macs
        )
        return tuple(
            self._cut(self.candidates[index], sorted(chosen))
            for index, chosen in sorted(_first_channels(order, enough).items())
        )

    def _enough(self, cut: Cut) -> bool:
        return self.channels.enough(self.channels.group(cut.layer, cut.channels))

    def _cut(self, candidate: CutCandidate, chosen: Sequence[int]) -> Cut:
        layer, width = candidate.layer, len(candidate.worth_c)
        return Cut(layer=layer, channels=tuple(chosen), of=width, coupled=self.channels.coupled(layer, chosen))


def _candidates(net: DynamicNet, channels: Channels, worth: Worth) -> list[CutCandidate]:
    """Groups that may lose channels, with what each channel is worth."""
    trials: list[Trial] = []
    taken: set[tuple[str, int]] = set()
    for layer in channels.roots():
        width = channels.width(channels.known(layer))
        tried = list(range(0, width, 2))
        owned = channels.owned(layer, range(width))
        if channels.enough(channels.group(layer, tried)) and not owned & taken:
            trials.append((layer, tried))
            taken |= owned
    candidates = []
    for layer, _ in sound(net, channels, trials):
        worth_c = worth(channels, layer)
        if len(worth_c) == channels.width(channels.known(layer)):
            candidates.append(CutCandidate(layer, worth_c / worth_c.mean().clamp_min(1e-12)))
    return candidates


def _removable(worth_c: Tensor) -> list[float]:
    """What channels are worth; the best of a group, which always stay, infinitely much."""
    stay = max(1, round(KEEP * len(worth_c)))
    best = set(worth_c.topk(stay).indices.tolist())
    return [float("inf") if c in best else float(worth) for c, worth in enumerate(worth_c)]


def _first_channels(order: Sequence[tuple[float, int, int]], count: int) -> dict[int, list[int]]:
    """The first ``count`` channels in the order of their worth, by their candidate's number."""
    channels: dict[int, list[int]] = {}
    for _, index, channel in order[:count]:
        channels.setdefault(index, []).append(channel)
    return channels
