"""Aligning: it learns, strips off without a trace, goes on after a kill, and says what it refuses."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from gated_nets import gated_net
from killed import killed_at_save

import dynext as dx
from dynext.align import monitor
from dynext.align import train as train_module
from dynext.align.losses import Loss
from dynext.errors import FitError, SourceError
from dynext.net.cascade import cascade
from dynext.testing import check_net
from dynext.types import Batch

Quick = Callable[..., dx.align.Alignment]
LOSSES = pytest.mark.parametrize("loss", get_args(Loss))
ANYWHERE = dx.align.JointTrunk(max_drift=1.0)
TRUNKS = pytest.mark.parametrize("trunk", ["frozen", ANYWHERE], ids=["frozen", "joint"])


def state(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@LOSSES
def test_it_learns_and_leaves_no_trace(
    loss: str,
    net: dx.DynamicNet,
    samples: dx.data.Samples,
    x: torch.Tensor,
    quick: Quick,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained = []

    class Recorded(train_module._Trained):
        def __init__(self, *given: object) -> None:
            super().__init__(*given)
            trained.append(self)

    monkeypatch.setattr(train_module, "_Trained", Recorded)
    before, flags, random = state(net), [m.training for m in net.modules()], torch.get_rng_state()

    aligned = quick(net, samples, loss=loss, steps=30, lr=1e-2)

    assert same(before, state(net))
    assert flags == [m.training for m in net.modules()]
    assert torch.equal(random, torch.get_rng_state())
    first, last = aligned.snapshots[0], aligned.snapshots[-1]
    assert (first.step, last.step, len(last.spread_e)) == (0, 29, 3)
    assert last.alignment < first.alignment
    assert last.classification < first.classification
    assert aligned.collapsed_e == (False, False, False)
    assert "COLLAPSED" not in str(aligned)

    # Heads strip off: same names, same MACs, same logits as with them; and not a bit of the trunk has moved.
    assert aligned.net.state_dict().keys() == net.state_dict().keys()
    assert aligned.net.head_macs_e == net.head_macs_e
    assert torch.equal(aligned.net.all_exits(x), trained[0].eval().all_exits(x))
    assert {p.data_ptr() for p in aligned.net.parameters()}.isdisjoint(p.data_ptr() for p in aligned.space.parameters())
    trunk = {name: tensor for name, tensor in state(aligned.net).items() if name.startswith("staged.")}
    assert trunk
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunk.items())
    assert torch.equal(aligned.net(x), net(x))
    assert not torch.equal(aligned.net.all_exits(x), net.all_exits(x))
    check_net(aligned.net, x)


def test_a_joint_trunk_moves_and_stays_near(net: dx.DynamicNet, samples: dx.data.Samples, quick: Quick) -> None:
    before = state(net)
    given = {"trunk": dx.align.JointTrunk(max_drift=0.5), "learn": "labels", "steps": 8}
    aligned = quick(net, samples, **given)
    after = state(aligned.net)
    moved = {name for name in after if name.startswith("staged.") and not torch.equal(after[name], before[name])}
    parameters = {name for name, _ in net.named_parameters()}
    assert moved
    assert moved <= parameters
    assert aligned.drift is not None
    assert aligned.drift.agreement >= 0.5
    assert (aligned.rows, aligned.drift.rows) == (56, 8)
    assert str(aligned.drift) in str(aligned)
    assert same(state(quick(net, samples, **given).net), after)
    still = quick(net, samples, trunk="joint", trunk_lr=0.0, steps=4)
    assert all(torch.equal(t, before[name]) for name, t in state(still.net).items() if name.startswith("staged."))


@pytest.mark.parametrize(
    "given", [{}, {"trunk": ANYWHERE, "augmentations": dx.align.Augmentations()}], ids=["frozen", "joint"]
)
def test_a_killed_run_ends_where_an_unbroken_one_ends(
    given: dict[str, object],
    net: dx.DynamicNet,
    samples: dx.data.Samples,
    quick: Quick,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = samples.subset(torch.arange(24))
    whole = quick(net, few, drop_conflicts=True, **given)
    path = tmp_path / "run.ckpt"
    with killed_at_save(monkeypatch, count=1):  # it saves at every step
        quick(net, few, drop_conflicts=True, checkpoint=path, checkpoint_seconds=-1, **given)
    resumed = quick(net, few, drop_conflicts=True, checkpoint=path, **given)
    assert same(state(whole.net), state(resumed.net))
    assert same(state(whole.space), state(resumed.space))
    assert (whole.snapshots, whole.dropped, whole.drift) == (resumed.snapshots, resumed.dropped, resumed.drift)
    with pytest.raises(FitError, match="another run .*loss was cosine, is l2"):
        quick(net, few, loss="l2", drop_conflicts=True, checkpoint=path, **given)


class Blind(dx.data.Samples):
    """Samples whose labels nobody may read."""

    def take(self, index: torch.Tensor) -> Batch:
        class Untouchable:
            def __getattribute__(self, name: str) -> object:
                raise AssertionError("a label was touched")

        return replace(super().take(index), y=Untouchable())


@TRUNKS
def test_taught_by_the_net_itself_no_label_is_touched(
    trunk: object, net: dx.DynamicNet, samples: dx.data.Samples, quick: Quick
) -> None:
    blind = Blind(pixels=samples.pixels, spec=samples.spec, batch_size=32)
    aligned = quick(net, blind, trunk=trunk)
    without = quick(net, samples.unlabelled(), trunk=trunk)
    assert same(state(aligned.net), state(without.net))


def test_a_bank_of_synthesized_samples_will_do(net: dx.DynamicNet, samples: dx.data.Samples, quick: Quick) -> None:
    bank = dx.synthesize(
        net.staged, shape=samples.shape, n=24, seed=0, method="leaves", spec=samples.spec, progress=False
    )
    for trunk in ("frozen", ANYWHERE):
        aligned = quick(net, bank, trunk=trunk, augmentations=dx.align.Augmentations(count=1))
        assert aligned.snapshots


@pytest.mark.parametrize("learn", ["teacher", "labels"])
@pytest.mark.parametrize("loss", ["cosine", "selfcon"])
def test_exits_learn_nothing_about_classes_held_out(
    learn: str, loss: str, net: dx.DynamicNet, samples: dx.data.Samples, quick: Quick
) -> None:
    seen = (0, 1, 2, 5, 7, 9)
    aligned = quick(net, samples, loss=loss, learn=learn, classes=seen)
    for new, old in zip(aligned.net.exits, net.exits, strict=True):
        moved = (new.classifier.weight != old.classifier.weight).any(1).nonzero()[:, 0].tolist()
        assert moved == list(seen)


def test_labels_of_held_out_classes_say_nothing(net: dx.DynamicNet, samples: dx.data.Samples, quick: Quick) -> None:
    seen = (0, 1, 2, 5, 7, 9)
    renamed_k = torch.tensor([0, 1, 2, 4, 6, 5, 8, 7, 3, 9])  # the others, in a ring
    given = {"loss": "selfcon", "learn": "labels", "classes": seen}
    aligned = quick(net, samples, **given)
    assert same(state(aligned.net), state(quick(net, replace(samples, y=renamed_k[samples.y]), **given).net))
    assert not same(
        state(aligned.net),
        state(quick(net, replace(samples, y=renamed_k[samples.y]), loss="selfcon", learn="labels").net),
    )


def test_a_net_built_to_collapse_is_found_out(net: dx.DynamicNet, samples: dx.data.Samples, quick: Quick) -> None:
    for module in net.exits[0].embedder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.constant_(module.bias, -1.0)  # behind the ReLU nothing is left, and no gradient comes back
    aligned = quick(net, samples)
    assert aligned.collapsed_e == (True, False, False)
    assert "COLLAPSED: exits 0 see all samples alike" in str(aligned)
    assert aligned.to_dict()["collapsed_e"] == [True, False, False]


def test_dropped_on_every_step_alignment_does_nothing(
    net: dx.DynamicNet, samples: dx.data.Samples, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "agreement", lambda *given: -1.0)
    aligned = quick(net, samples, drop_conflicts=True)
    assert (aligned.dropped, aligned.conflicts) == (4, 1.0)
    assert same(state(aligned.net), state(quick(net, samples, weight=0.0).net))
    kept = quick(net, samples)
    assert kept.dropped == 0
    assert not same(state(kept.net), state(aligned.net))


def test_one_view_or_two_of_copies_made_once(net: dx.DynamicNet, samples: dx.data.Samples, quick: Quick) -> None:
    one, two = (quick(net, samples, augmentations=dx.align.Augmentations(count=count, copies=3)) for count in (1, 2))
    assert not same(state(one.net), state(two.net))
    assert same(state(quick(net, samples, augmentations=dx.align.Augmentations(count=2, copies=3)).net), state(two.net))
    assert quick(net, samples, batch_size=2, augmentations=dx.align.Augmentations()).snapshots


@TRUNKS
def test_labels_that_are_no_class_of_the_net_are_told(
    trunk: str, net: dx.DynamicNet, samples: dx.data.Samples, quick: Quick
) -> None:
    wrong = replace(samples, y=torch.where(samples.y == 0, -1, samples.y))
    with pytest.raises(SourceError, match=f"labels from -1 to .* for a net of {net.num_classes} classes from 0"):
        quick(net, wrong, learn="labels", trunk=trunk, batch_size=64)


def test_what_cannot_be_aligned_is_refused(net: dx.DynamicNet, samples: dx.data.Samples, quick: Quick) -> None:
    with pytest.raises(FitError, match=r"batch_size=1; alignment compares samples with each other"):
        quick(net, samples, batch_size=1)
    with pytest.raises(FitError, match="temperature=0; give a positive one"):
        quick(net, samples, learn=dx.align.FromTeacher(temperature=0))
    with pytest.raises(FitError, match="hidden=12, size=0; both are positive"):
        quick(net, samples, size=0)
    with pytest.raises(FitError, match=r"loss='simclr', .* give one of cosine, ntxent"):
        quick(net, samples, loss="simclr")
    with pytest.raises(FitError, match=r"max_drift=1\.5; give a share"):
        dx.align.JointTrunk(max_drift=1.5)
    with pytest.raises(FitError, match="there is no option step; did you mean steps=?"):
        quick(net, samples, step=3)
    with pytest.raises(FitError, match="no early exit to align"):
        quick(dx.DynamicNet(net.staged, []), samples)
    with pytest.raises(FitError, match="exits of a cascade hand on logits"):
        quick(cascade(net, "boost"), samples)
    with pytest.raises(FitError, match="trunk='thawed', learn='teacher'"):
        quick(net, samples, trunk="thawed")
    with pytest.raises(FitError, match=r"weight=-1"):
        quick(net, samples, weight=-1)
    with pytest.raises(FitError, match=r"classes \(3,\) of a net with 10"):
        quick(net, samples, classes=(3,))
    for trunk in ("frozen", ANYWHERE):
        with pytest.raises(SourceError, match="no labels to learn from"):
            quick(net, samples.unlabelled(), learn="labels", trunk=trunk)
    with pytest.raises(SourceError, match="the source has 3 samples; give at least 4"):
        quick(net, samples.subset(torch.arange(3)))
    small = dx.InputSpec(shape=(3, 4, 4), mean=(0.5,) * 3, std=(0.25,) * 3)
    with pytest.raises(SourceError, match=r"samples of shape \(3, 4, 4\)"):
        quick(net, dx.data.Samples(pixels=samples.pixels[..., :4, :4], spec=small))


def test_short_forms_are_the_settings_they_stand_for(net: dx.DynamicNet, samples: dx.data.Samples) -> None:
    few = {"steps": 3, "batch_size": 8, "progress": False}
    term = dx.align.AlignmentTerm(loss="barlow")
    short = dx.align.align_exits(net, samples, term="barlow", trunk="joint", learn="teacher", **few)
    long = dx.align.align_exits(
        net, samples, dx.FitConfig(lr=2e-3, **few), term=term, trunk=dx.align.JointTrunk(), learn=dx.align.FromTeacher()
    )
    assert same(state(short.net), state(long.net))
    assert same(state(short.space), state(long.space))
    assert (short.loss, short.weight, short.trunk) == ("barlow", 0.02, "joint")


def test_a_checkpoint_knows_its_run_by_the_names_of_the_first_version(
    net: dx.DynamicNet, samples: dx.data.Samples, quick: Quick, tmp_path: Path
) -> None:
    path = tmp_path / "run.ckpt"
    quick(net, samples, checkpoint=path, augmentations=dx.align.Augmentations(count=1), classes=[3, 5, 3])
    kept = torch.load(path, weights_only=True)["module"]["_extra_state"]
    assert kept.keys() == {"options", "watch", "leash"}
    assert kept["watch"].keys() == {"looks", "dropped"}
    assert kept["options"] == {
        "loss": "cosine", "weight": 1.0, "trunk": "frozen", "learn": "teacher", "classes": [3, 5],
        "views": {"count": 1, "area": 0.4, "mirror": 0.5, "jitter": 0.4, "blur": 0.2, "copies": 2},
        "batch_size": 16, "trunk_lr": 1e-4, "temperature": 4.0, "contrast": 0.1, "drop_conflicts": False,
        "max_drift": 0.02,
    }  # fmt: skip


def test_gates_stay_as_they_are(quick: Quick) -> None:
    gated = gated_net()
    spec = dx.InputSpec(shape=gated.staged.input_shape, mean=(0.5,) * 3, std=(0.25,) * 3)
    pixels = torch.rand(24, *spec.shape, generator=torch.Generator().manual_seed(0))
    aligned = quick(gated, dx.data.Samples(pixels=pixels, spec=spec))
    assert same(state(gated.gates), state(aligned.net.gates))
