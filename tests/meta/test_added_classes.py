"""Classes added to those that a net knows: the old ones answer as before, the new ones are learned, exit by exit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from zoo import NETS

import dynext as dx
from dynext.data.samples import Samples
from dynext.errors import FitError, SourceError
from dynext.meta.prototypes import classifier_of
from dynext.seeding import seeded


@pytest.fixture(scope="module")
def learned() -> tuple[dx.DynamicNet, Samples, Samples]:
    """A net that knows six digits, samples of these, and of the other four."""
    base, new = dx.data.split_classes(dx.data.digits(), [6, 4], seed=0)
    with seeded(0):
        model = dx.models.ResNet(8, num_classes=6, width=8, channels=1).eval()
    net = dx.attach(dx.split(model, torch.zeros(1, 1, 8, 8), after=["layer1", "layer2"]), dx.default_heads(6))
    return dx.train.joint(net, base, steps=150, lr=0.01, progress=False), base, new


def shots(samples: Samples, count: int) -> Samples:
    return samples.subset(torch.cat([(samples.y == c).nonzero()[:count, 0] for c in samples.y.unique()]))


def test_old_logits_stay_bit_for_bit_and_new_classes_follow_them(learned) -> None:
    net, base, new = learned
    grown = dx.meta.add_classes(net, shots(new, 5))
    x = base.take(torch.arange(64)).x
    assert grown.num_classes == 10
    torch.testing.assert_close(grown.all_exits(x)[..., :6], net.all_exits(x), rtol=1e-5, atol=1e-5)
    for e in range(3):
        assert torch.equal(classifier_of(grown, e).weight[:6], classifier_of(net, e).weight)
        assert torch.equal(classifier_of(grown, e).bias[:6], classifier_of(net, e).bias)
    assert net.num_classes == 6


def test_old_accuracy_holds_and_new_classes_are_known_at_every_exit(learned) -> None:
    net, base, new = learned
    seen_n = torch.arange(len(base)) % 5 == 0
    grown = dx.meta.add_classes(net, shots(new, 10), old=base.subset(seen_n).unlabelled())
    others = base.subset(~seen_n)
    before, after = dx.collect(net, others).accuracy_e, dx.collect(grown, others).accuracy_e
    further = dx.collect(grown, replace(new, y=new.y + 6)).accuracy_e
    assert min(before) > 0.8
    assert all(b - a < 0.04 for a, b in zip(after, before, strict=True)), (before, after)
    assert all(share > 0.5 for share in further), further  # four classes of ten; by chance .1


def test_without_old_samples_most_examples_of_a_new_class_win(learned) -> None:
    net, _, new = learned
    examples = shots(new, 8)
    right_ne = dx.collect(dx.meta.add_classes(net, examples), replace(examples, y=examples.y + 6)).right_ne
    assert right_ne.double().mean() > 0.4


def test_one_class_can_be_added_and_the_net_is_saved_and_run_as_any_other(learned, tmp_path: Path) -> None:
    net, base, new = learned
    grown = dx.meta.add_classes(net, shots(new.subset((new.y == 0).nonzero()[:, 0]), 5), old=base)
    assert grown.num_classes == 7
    policy = dx.Policy.always(3)
    folder = dx.save(grown, tmp_path / "net", policy=policy, spec=base.spec)
    kept = dx.load(folder, model=dx.models.ResNet(8, num_classes=6, width=8, channels=1))
    x = base.take(torch.arange(9)).x
    torch.testing.assert_close(kept.net.run(x, policy).logits, grown.run(x, policy).logits)


def test_what_cannot_be_added_is_said(learned) -> None:
    net, base, new = learned
    with pytest.raises(SourceError, match="examples without labels"):
        dx.meta.add_classes(net, new.unlabelled())
    with pytest.raises(SourceError, match="no example of class 0, 1"):
        dx.meta.add_classes(net, new.subset((new.y == 2).nonzero()[:, 0]))
    with pytest.raises(SourceError, match="synthesized examples"):
        dx.meta.add_classes(net, replace(new, bn="batch"))
    with pytest.raises(FitError, match="cosine classifiers|not by an nn.Linear|nn.Linear"):
        dx.meta.add_classes(dx.align.few_shot(net, shots(base, 5)), new)
    assert NETS
