"""Joint distillation: exits get better, the last one stays near its teacher, and nothing else moves."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference import joint as slow
from torch import nn
from zoo import NETS

import dynext.zeroshot.joint as subject
from dynext.data.samples import Samples
from dynext.errors import FitError, SourceError
from dynext.graph.split import split
from dynext.modules.exits import default_heads
from dynext.modules.modes import batch_norms, batch_statistics
from dynext.net.attach import attach
from dynext.net.dynamic_net import DynamicNet
from dynext.seeding import seeded
from dynext.train.drift import measure_drift
from dynext.train.frozen_teacher import Guide, lent, recorded
from dynext.types import Batch, InputSpec
from dynext.zeroshot.joint import JointLoss, JointReport, distill_jointly

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
Setting = tuple[DynamicNet, nn.Module, Samples]
QUIET = {"batch_size": 16, "progress": False}


def setting(name: str = "residual", n: int = 64) -> Setting:
    model, example = NETS[name]()
    net = attach(split(model, example, after=[0.3, 0.6]), default_heads(10, hidden=8))
    x = torch.randn(n, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    return net, model, Samples(pixels=x, spec=SPEC, batch_size=32)


def held_out(rows: Samples, seed: int = 0) -> Samples:
    """As the docstring says: an eighth of the samples, by seed."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows.subset(order[: len(rows) // 8])


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize("bn", ["frozen", "batch"])
def test_exits_learn_and_no_argument_moves(bn: str) -> None:
    net, teacher, rows = setting()
    before, teachers = weights(net), weights(teacher)
    buffers = dict(net.staged.named_buffers())
    random_state, flags = torch.get_rng_state(), [m.training for m in (*net.modules(), *teacher.modules())]
    student, report = distill_jointly(net, teacher, rows, steps=40, lr=5e-3, bn=bn, max_drift=1.0, **QUIET)
    assert sum(report.after.agreement_e[:-1]) > sum(report.before.agreement_e[:-1]) + 0.1
    assert not torch.equal(next(student.staged.parameters()), next(net.staged.parameters()))
    assert all(torch.equal(kept, buffers[name]) for name, kept in student.staged.named_buffers())
    assert same(before, net.state_dict())
    assert same(teachers, teacher.state_dict())
    assert torch.equal(random_state, torch.get_rng_state())
    assert flags == [m.training for m in (*net.modules(), *teacher.modules())]
    assert [m.training for m in student.modules()] == [m.training for m in net.modules()]
    assert [p.requires_grad for p in student.parameters()] == [p.requires_grad for p in net.parameters()]
    assert not any(m._forward_pre_hooks for m in (*student.modules(), *teacher.modules()))


def test_the_drift_that_is_reported_is_the_true_one() -> None:
    net, teacher, rows = setting()
    student, report = distill_jointly(net, teacher, rows, steps=15, trunk_lr=1e-2, max_drift=1.0, **QUIET)
    apart = held_out(rows)
    with torch.no_grad():
        logits, wanted = student.all_exits(apart.pixels), teacher(apart.pixels)
    agreement, divergence = slow.drift(logits.double().numpy(), wanted.double().numpy())
    assert report.after.agreement_e == pytest.approx(agreement)
    assert report.after.kl == pytest.approx(divergence, rel=1e-4)
    assert report.after.kl > 1e-6
    assert report.after.agreement < 1
    assert report.after.rows == len(apart) == 8
    assert report.before.agreement == 1.0
    assert measure_drift(student, teacher, apart) == report.after
    assert measure_drift(net, teacher, apart) == report.before


def test_a_drift_beyond_the_bound_is_undone_and_the_trunk_slowed() -> None:
    net, teacher, rows = setting(n=128)
    wild = {"steps": 10, "trunk_lr": 0.1, **QUIET}
    _, free = distill_jointly(net, teacher, rows, max_drift=1.0, **wild)
    student, report = distill_jointly(net, teacher, rows, max_drift=0.1, **wild)
    assert free.after.agreement < 0.9 <= report.after.agreement
    undone = [check for check in report.checks if check.restored]
    assert undone
    assert report.checks[-1].rate == 0.5 ** len(undone)
    assert measure_drift(student, teacher, held_out(rows)).agreement == report.after.agreement
    assert f"{len(undone)} of {len(report.checks)} checks" in str(report)


def test_a_trunk_rate_of_zero_leaves_the_last_exit_alone() -> None:
    net, teacher, rows = setting()
    student, report = distill_jointly(net, teacher, rows, steps=5, trunk_lr=0.0, max_drift=0.0, **QUIET)
    assert same(weights(net.staged), student.staged.state_dict())
    assert not torch.equal(net.exits[0].classifier.weight, student.exits[0].classifier.weight)
    assert report.after.kl == pytest.approx(0, abs=1e-9)


def test_the_anchor_and_the_features_hold_the_last_exit() -> None:
    net, teacher, rows = setting()
    known = {"steps": 12, "trunk_lr": 1e-2, "max_drift": 1.0, **QUIET}
    loose = distill_jointly(net, teacher, rows, loss=JointLoss(anchor=0.0), **known)[1]
    anchored = distill_jointly(net, teacher, rows, loss=JointLoss(anchor=5.0), **known)[1]
    matched = distill_jointly(net, teacher, rows, loss=JointLoss(anchor=0.0, match=50.0), **known)[1]
    assert anchored.after.kl < 0.7 * loose.after.kl
    assert matched.after.kl < 0.7 * loose.after.kl


class Killed(Exception):
    pass


def killed_and_resumed(
    made: Setting, folder: Path, monkeypatch: pytest.MonkeyPatch, die_at: int, **known: object
) -> tuple[DynamicNet, JointReport]:
    calls = []

    def dying(*arguments: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > die_at * made[0].num_exits:
            raise Killed
        return loss(*arguments)

    loss, config = subject.distillation, subject.FitConfig
    with monkeypatch.context() as patched:
        patched.setattr(subject, "FitConfig", lambda **kept: config(**kept, checkpoint_seconds=0))
        patched.setattr(subject, "distillation", dying)
        with pytest.raises(Killed):
            distill_jointly(*made, checkpoint=folder / "joint.ckpt", **known)
    return distill_jointly(*made, checkpoint=folder / "joint.ckpt", **known)


@pytest.mark.parametrize("die_at", [3, 7])
def test_a_killed_run_ends_where_an_unbroken_one_ends(
    die_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = setting()
    known = {"steps": 10, "trunk_lr": 0.05, "max_drift": 0.2, **QUIET}
    whole, report = distill_jointly(*made, **known)
    assert any(check.restored for check in report.checks[:4])
    resumed, told = killed_and_resumed(made, tmp_path, monkeypatch, die_at, **known)
    assert same(weights(whole), resumed.state_dict())
    assert replace(told, seconds=0) == replace(report, seconds=0)
    again, told = distill_jointly(*made, checkpoint=tmp_path / "joint.ckpt", **known)
    assert same(weights(whole), again.state_dict())
    assert replace(told, seconds=0) == replace(report, seconds=0)
    with pytest.raises(FitError, match="another run.*bn was frozen, is batch"):
        distill_jointly(*made, checkpoint=tmp_path / "joint.ckpt", bn="batch", **known)


@pytest.mark.parametrize("bn", ["frozen", "batch"])
@pytest.mark.parametrize("name", ["vit_like", "unet_like", "shared_weights", "convnext_like"])
def test_nets_of_other_kinds(name: str, bn: str) -> None:
    student, report = distill_jointly(*setting(name), steps=3, max_drift=1.0, bn=bn, **QUIET)
    assert report.after.rows == 8
    assert all(p.isfinite().all() for p in student.parameters())


class TwoClasses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(192, 8), nn.Linear(8, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.b(self.a(x.flatten(1)).relu()).relu()))


def test_two_classes_in_float64_without_batch_norm() -> None:
    with seeded(0):
        teacher = TwoClasses().double().eval()
    net = attach(split(teacher, torch.zeros(1, 3, 8, 8).double(), after=["a"]), default_heads(2, hidden=8))
    student, report = distill_jointly(net, teacher, setting()[2], steps=20, max_drift=1.0, **QUIET)
    assert {p.dtype for p in student.parameters()} == {torch.float64}
    assert report.after.agreement_e[0] >= report.before.agreement_e[0]


class Stream:
    """Samples that can only be iterated."""

    bn = "running"
    shape = SPEC.shape

    def __init__(self, rows: Samples) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.rows)


def test_rows_that_can_only_be_iterated_do_as_well() -> None:
    net, teacher, rows = setting()
    one, _ = distill_jointly(net, teacher, rows, steps=3, max_drift=1.0, **QUIET)
    two, _ = distill_jointly(net, teacher, Stream(rows), steps=3, max_drift=1.0, **QUIET)
    assert same(weights(one), two.state_dict())


def test_lent_statistics_are_the_teachers() -> None:
    """What is trained beside a teacher on batch statistics: equal to it at first, and a grown weight shows."""
    net, teacher, rows = setting()
    guide, x = Guide.of(teacher, "batch"), rows.pixels
    kept = weights(net)
    with torch.no_grad(), guide.beside(net.staged, x) as wanted:
        torch.testing.assert_close(net(x), wanted.logits, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(wanted.logits, teacher(x), atol=1e-2)
    grown = copy.deepcopy(net)
    with torch.no_grad(), guide.beside(grown.staged, x) as wanted:
        next(grown.staged.parameters()).mul_(2)
        assert not torch.allclose(grown(x), wanted.logits, atol=1e-2)
    with torch.no_grad(), batch_statistics(grown.staged):
        torch.testing.assert_close(grown(x), wanted.logits, rtol=1e-3, atol=1e-3)
    assert same(kept, net.state_dict())
    with torch.no_grad(), batch_statistics(teacher), recorded(teacher) as moments:
        alone = teacher(x)
    assert len(moments) == len(batch_norms(teacher))
    torch.testing.assert_close(wanted.logits, alone)


def test_statistics_of_another_net_are_refused() -> None:
    net, teacher, rows = setting()
    x = rows.pixels[:4]
    with torch.no_grad(), batch_statistics(teacher), recorded(teacher) as moments:
        teacher(x)
    for wrong in (moments[:-1], [*moments, moments[0]], [(m[:1], v[:1]) for m, v in moments]):
        with pytest.raises(FitError, match="cannot lend their statistics"), torch.no_grad(), lent(net.staged, wrong):
            net(x)
    other = NETS["plain"]()[0]
    with pytest.raises(FitError, match="cannot lend their statistics"):
        measure_drift(net, other, rows, bn="batch")
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_what_cannot_be_distilled_is_refused() -> None:
    net, teacher, rows = setting()
    with pytest.raises(FitError, match="no early exit to train"):
        distill_jointly(DynamicNet(net.staged, []), teacher, rows, progress=False)
    with pytest.raises(FitError, match="max_drift=1.5"):
        distill_jointly(net, teacher, rows, max_drift=1.5, progress=False)
    with pytest.raises(FitError, match=r"lr=0, trunk_lr=0.0001; the first must be positive"):
        distill_jointly(net, teacher, rows, lr=0, progress=False)
    with pytest.raises(FitError, match="bn='update'; give 'frozen'"):
        distill_jointly(net, teacher, rows, bn="update", progress=False)
    with pytest.raises(SourceError, match="the source has 3 samples; give at least 4"):
        distill_jointly(net, teacher, rows.subset(torch.arange(3)), progress=False)
    large = Samples(pixels=torch.zeros(8, 3, 9, 9), spec=replace(SPEC, shape=(3, 9, 9)))
    with pytest.raises(SourceError, match="the model expects"):
        distill_jointly(net, teacher, large, progress=False)
    other = build_other(teacher)
    with pytest.raises(FitError, match=r"before any training, max_drift=0.02 wants 98.00%"):
        distill_jointly(net, other, rows, progress=False)
    with pytest.raises(FitError, match=r"match=1.0 compares features"):
        distill_jointly(net, other, rows, loss=JointLoss(match=1.0), max_drift=1.0, progress=False)


def build_other(teacher: nn.Module) -> nn.Module:
    with seeded(9):
        return type(teacher)().eval()
