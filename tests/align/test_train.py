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
from dynext.align import monitor as watch
from dynext.align import train as train_module
from dynext.align.losses import Loss
from dynext.errors import FitError, SourceError
from dynext.net.cascade import cascade
from dynext.testing import check_net
from dynext.types import Batch

Quick = Callable[..., dx.align.Alignment]
LOSSES = pytest.mark.parametrize("loss", get_args(Loss))


def state(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@LOSSES
def test_it_learns_and_leaves_no_trace(
    loss: str, net: dx.DynamicNet, rows: dx.data.Samples, x: torch.Tensor, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Kept(train_module._Trained):
        def __init__(self, *given: object) -> None:
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr(train_module, "_Trained", Kept)
    before, flags, random = state(net), [m.training for m in net.modules()], torch.get_rng_state()

    found = quick(net, rows, loss=loss, steps=30, lr=1e-2)

    assert same(before, state(net))
    assert flags == [m.training for m in net.modules()]
    assert torch.equal(random, torch.get_rng_state())
    first, last = found.looks[0], found.looks[-1]
    assert (first.step, last.step, len(last.spread_e)) == (0, 29, 3)
    assert last.alignment < first.alignment
    assert last.classification < first.classification
    assert found.collapsed_e == (False, False, False)
    assert "COLLAPSED" not in str(found)

    # Heads strip off: same names, same MACs, same logits as with them; and not a bit of the trunk has moved.
    assert found.net.state_dict().keys() == net.state_dict().keys()
    assert found.net.head_macs_e == net.head_macs_e
    assert torch.equal(found.net.all_exits(x), made[0].eval().all_exits(x))
    assert {p.data_ptr() for p in found.net.parameters()}.isdisjoint(p.data_ptr() for p in found.space.parameters())
    trunk = {name: tensor for name, tensor in state(found.net).items() if name.startswith("staged.")}
    assert trunk
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunk.items())
    assert torch.equal(found.net(x), net(x))
    assert not torch.equal(found.net.all_exits(x), net.all_exits(x))
    check_net(found.net, x)


def test_a_joint_trunk_moves_and_stays_near(net: dx.DynamicNet, rows: dx.data.Samples, quick: Quick) -> None:
    before = state(net)
    given = {"trunk": "joint", "learn": "labels", "steps": 8, "max_drift": 0.5}
    found = quick(net, rows, **given)
    after = state(found.net)
    moved = {name for name in after if name.startswith("staged.") and not torch.equal(after[name], before[name])}
    parameters = {name for name, _ in net.named_parameters()}
    assert moved
    assert moved <= parameters
    assert found.drift is not None
    assert found.drift.agreement >= 0.5
    assert (found.rows, found.drift.rows) == (56, 8)
    assert str(found.drift) in str(found)
    assert same(state(quick(net, rows, **given).net), after)
    still = quick(net, rows, trunk="joint", trunk_lr=0.0, steps=4)
    assert all(torch.equal(t, before[name]) for name, t in state(still.net).items() if name.startswith("staged."))


@pytest.mark.parametrize(
    "given", [{}, {"trunk": "joint", "max_drift": 1.0, "views": dx.align.Augmentations()}], ids=["frozen", "joint"]
)
def test_a_killed_run_ends_where_an_unbroken_one_ends(
    given: dict[str, object],
    net: dx.DynamicNet,
    rows: dx.data.Samples,
    quick: Quick,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = rows.subset(torch.arange(24))
    whole = quick(net, few, drop_conflicts=True, **given)
    config = train_module.FitConfig
    eager = lambda **kwargs: replace(config(**kwargs), checkpoint_seconds=-1)  # noqa: E731  saves at every step
    path = tmp_path / "run.ckpt"
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "FitConfig", eager)
        with killed_at_save(patch, count=1):
            quick(net, few, drop_conflicts=True, checkpoint=path, **given)
    resumed = quick(net, few, drop_conflicts=True, checkpoint=path, **given)
    assert same(state(whole.net), state(resumed.net))
    assert same(state(whole.space), state(resumed.space))
    assert (whole.looks, whole.dropped, whole.drift) == (resumed.looks, resumed.dropped, resumed.drift)
    with pytest.raises(FitError, match="another run .*loss was cosine, is l2"):
        quick(net, few, loss="l2", drop_conflicts=True, checkpoint=path, **given)


class Blind(dx.data.Samples):
    """Samples whose labels nobody may read."""

    def take(self, index: torch.Tensor) -> Batch:
        class Untouchable:
            def __getattribute__(self, name: str) -> object:
                raise AssertionError("a label was touched")

        return replace(super().take(index), y=Untouchable())


@pytest.mark.parametrize("trunk", ["frozen", "joint"])
def test_taught_by_the_net_itself_no_label_is_touched(
    trunk: str, net: dx.DynamicNet, rows: dx.data.Samples, quick: Quick
) -> None:
    blind = Blind(pixels=rows.pixels, spec=rows.spec, batch_size=32)
    found = quick(net, blind, trunk=trunk, max_drift=1.0)
    without = quick(net, rows.unlabelled(), trunk=trunk, max_drift=1.0)
    assert same(state(found.net), state(without.net))


def test_a_bank_of_synthesized_rows_will_do(net: dx.DynamicNet, rows: dx.data.Samples, quick: Quick) -> None:
    bank = dx.synthesize(net.staged, shape=rows.shape, n=24, seed=0, method="leaves", spec=rows.spec, progress=False)
    for trunk in ("frozen", "joint"):
        found = quick(net, bank, trunk=trunk, max_drift=1.0, views=dx.align.Augmentations(count=1))
        assert found.looks


@pytest.mark.parametrize("learn", ["teacher", "labels"])
@pytest.mark.parametrize("loss", ["cosine", "selfcon"])
def test_exits_learn_nothing_about_classes_held_out(
    learn: str, loss: str, net: dx.DynamicNet, rows: dx.data.Samples, quick: Quick
) -> None:
    seen = (0, 1, 2, 5, 7, 9)
    found = quick(net, rows, loss=loss, learn=learn, classes=seen)
    for new, old in zip(found.net.exits, net.exits, strict=True):
        moved = (new.classifier.weight != old.classifier.weight).any(1).nonzero()[:, 0].tolist()
        assert moved == list(seen)


def test_labels_of_held_out_classes_say_nothing(net: dx.DynamicNet, rows: dx.data.Samples, quick: Quick) -> None:
    seen = (0, 1, 2, 5, 7, 9)
    renamed_k = torch.tensor([0, 1, 2, 4, 6, 5, 8, 7, 3, 9])  # the others, in a ring
    given = {"loss": "selfcon", "learn": "labels", "classes": seen}
    found = quick(net, rows, **given)
    assert same(state(found.net), state(quick(net, replace(rows, y=renamed_k[rows.y]), **given).net))
    assert not same(
        state(found.net), state(quick(net, replace(rows, y=renamed_k[rows.y]), loss="selfcon", learn="labels").net)
    )


def test_a_net_built_to_collapse_is_found_out(net: dx.DynamicNet, rows: dx.data.Samples, quick: Quick) -> None:
    for module in net.exits[0].embedder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.constant_(module.bias, -1.0)  # behind the ReLU nothing is left, and no gradient comes back
    found = quick(net, rows)
    assert found.collapsed_e == (True, False, False)
    assert "COLLAPSED: exits 0 see all samples alike" in str(found)
    assert found.to_dict()["collapsed_e"] == [True, False, False]


def test_dropped_on_every_step_alignment_does_nothing(
    net: dx.DynamicNet, rows: dx.data.Samples, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "agreement", lambda *given: -1.0)
    found = quick(net, rows, drop_conflicts=True)
    assert (found.dropped, found.conflicts) == (4, 1.0)
    assert same(state(found.net), state(quick(net, rows, weight=0.0).net))
    kept = quick(net, rows)
    assert kept.dropped == 0
    assert not same(state(kept.net), state(found.net))


def test_one_view_or_two_of_copies_made_once(net: dx.DynamicNet, rows: dx.data.Samples, quick: Quick) -> None:
    one, two = (quick(net, rows, views=dx.align.Augmentations(count=count, copies=3)) for count in (1, 2))
    assert not same(state(one.net), state(two.net))
    assert same(state(quick(net, rows, views=dx.align.Augmentations(count=2, copies=3)).net), state(two.net))
    assert quick(net, rows, batch_size=2, views=dx.align.Augmentations()).looks


@pytest.mark.parametrize("trunk", ["frozen", "joint"])
def test_labels_that_are_no_class_of_the_net_are_told(
    trunk: str, net: dx.DynamicNet, rows: dx.data.Samples, quick: Quick
) -> None:
    wrong = replace(rows, y=torch.where(rows.y == 0, -1, rows.y))
    with pytest.raises(SourceError, match=f"labels from -1 to .* for a net of {net.num_classes} classes from 0"):
        quick(net, wrong, learn="labels", trunk=trunk, batch_size=64)


def test_what_cannot_be_aligned_is_refused(net: dx.DynamicNet, rows: dx.data.Samples, quick: Quick) -> None:
    with pytest.raises(FitError, match=r"batch_size=1; alignment compares samples with each other"):
        quick(net, rows, batch_size=1)
    with pytest.raises(FitError, match="temperature=0, hidden=12, size=8; all of them are positive"):
        quick(net, rows, temperature=0)
    with pytest.raises(FitError, match="no early exit to align"):
        quick(dx.DynamicNet(net.staged, []), rows)
    with pytest.raises(FitError, match="exits of a cascade hand on logits"):
        quick(cascade(net, "boost"), rows)
    with pytest.raises(FitError, match="trunk='thawed', learn='teacher'"):
        quick(net, rows, trunk="thawed")
    with pytest.raises(FitError, match=r"weight=-1"):
        quick(net, rows, weight=-1)
    with pytest.raises(FitError, match=r"classes \(3,\) of a net with 10"):
        quick(net, rows, classes=(3,))
    for trunk in ("frozen", "joint"):
        with pytest.raises(SourceError, match="no labels to learn from"):
            quick(net, rows.unlabelled(), learn="labels", trunk=trunk, max_drift=1.0)
    with pytest.raises(SourceError, match="3 samples; alignment compares"):
        quick(net, rows.subset(torch.arange(3)))
    small = dx.InputSpec(shape=(3, 4, 4), mean=(0.5,) * 3, std=(0.25,) * 3)
    with pytest.raises(SourceError, match=r"samples of shape \(3, 4, 4\)"):
        quick(net, dx.data.Samples(pixels=rows.pixels[..., :4, :4], spec=small))


def test_gates_stay_as_they_are(quick: Quick) -> None:
    gated = gated_net()
    spec = dx.InputSpec(shape=gated.staged.input_shape, mean=(0.5,) * 3, std=(0.25,) * 3)
    pixels = torch.rand(24, *spec.shape, generator=torch.Generator().manual_seed(0))
    found = quick(gated, dx.data.Samples(pixels=pixels, spec=spec))
    assert same(state(gated.gates), state(found.net.gates))
