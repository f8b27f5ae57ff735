"""Before and after: an old policy on an aligned net, and one chosen anew."""

from collections.abc import Callable

import pytest
import torch

import dynext as dx
from dynext.errors import PolicyError


def test_thresholds_and_temperatures_are_chosen_anew(
    net: dx.DynamicNet, samples: dx.data.Samples, quick: Callable[..., dx.align.Alignment]
) -> None:
    before = dx.train.joint(net, samples, dx.FitConfig(steps=15, lr=1e-2, progress=False))
    seen, test = samples.subset(torch.arange(40)), samples.subset(torch.arange(40, 64))
    old = dx.choose(dx.collect(before, seen), budget=0.9, rule=dx.policies.SafeRule(min_support=0))
    aligned = quick(before, samples, steps=15)
    rechosen = dx.align.rechoose(before, aligned.net, old, seen, judged_on=test, budget=0.8)

    table = dx.collect(aligned.net, seen)
    wanted = dx.choose(table, budget=0.8, temperature=dx.calibrate(table))
    assert rechosen.policy == wanted
    assert rechosen.policy.temperature_e != old.temperature_e
    assert rechosen.before == dx.report(dx.collect(before, test), old)
    assert rechosen.stale == dx.report(dx.collect(aligned.net, test), old)
    assert rechosen.after == dx.report(dx.collect(aligned.net, test), wanted)
    assert len(rechosen.table) == 40
    text = str(rechosen)
    for title in ("Before alignment", "Aligned, at that old policy", "chosen anew"):
        assert title in text
    assert rechosen.to_dict()["after"] == rechosen.after.to_dict()

    alone = dx.align.rechoose(before, aligned.net, old, seen.unlabelled())
    assert alone.after.num_rows == 40
    assert alone.after.basis == "teacher"
    with pytest.raises(PolicyError, match="exits"):
        dx.align.rechoose(before, aligned.net, dx.Policy.never(5), seen)
