"""A loss of one's own is a method; `fit` trains what learns in training mode, and gives every flag back."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from killed import killed_at_save
from methods import METHODS, setting
from torch import Generator, Tensor, nn

import dynext as dx
from dynext.errors import FitError, SourceError
from dynext.testing import ConformanceError, check_method

SHORT = {"lr": 5e-3, "batch_size": 64, "progress": False}


def every_exit(logits_nek: Tensor, y_n: Tensor, net: dx.DynamicNet) -> Tensor:
    """Cross-entropy of all exits, by labels or by probabilities."""
    return torch.stack([F.cross_entropy(logits_nk, y_n) for logits_nk in logits_nek.unbind(1)]).sum()


def early(logits_nek: Tensor, y_n: Tensor, net: dx.DynamicNet) -> Tensor:
    return every_exit(logits_nek[:, :-1], y_n, net)


def errors(net: dx.DynamicNet, samples: dx.data.Samples) -> Tensor:
    with torch.no_grad():
        logits_bek = net.all_exits(samples.take(torch.arange(len(samples))).x)
    return torch.stack([F.cross_entropy(logits, samples.y) for logits in logits_bek.unbind(1)])


def same(one: nn.Module, two: nn.Module) -> bool:
    other = two.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("trunk", ["frozen", "joint"])
def test_a_loss_is_all_that_a_method_brings(trunk: str) -> None:
    net, samples = setting(METHODS["joint"])
    check_method(partial(dx.train.exits, loss=every_exit, trunk=trunk), net, samples)
    student = dx.train.exits(net, samples, loss=every_exit, trunk=trunk, steps=40, **SHORT)
    assert (errors(student, samples)[:2] < errors(net, samples)[:2]).all()
    assert (errors(student, samples)[-1] == errors(net, samples)[-1]) == (trunk == "frozen")


def test_joint_training_is_this_loss() -> None:
    net, samples = setting(METHODS["joint"])
    own = dx.train.exits(net, samples, loss=every_exit, trunk="joint", steps=3, **SHORT)
    assert same(own, dx.train.joint(net, samples, steps=3, **SHORT))


def test_several_losses_are_added_up() -> None:
    net, samples = setting(METHODS["joint"])
    twice = dx.train.exits(net, samples, loss=[early, early], steps=3, **SHORT)
    doubled = dx.train.exits(net, samples, loss=lambda z, y, net: 2 * early(z, y, net), steps=3, **SHORT)
    assert same(twice, doubled)
    assert not same(twice, dx.train.exits(net, samples, loss=early, steps=3, **SHORT))


@pytest.mark.parametrize("trunk", ["frozen", "joint"])
def test_a_teacher_stands_in_place_of_labels(trunk: str) -> None:
    net, samples = setting(METHODS["joint"])
    teacher = net.staged
    seen: list[Tensor] = []

    def loss(logits_nek: Tensor, y_nk: Tensor, net: dx.DynamicNet) -> Tensor:
        seen.append(y_nk.detach())
        return every_exit(logits_nek, y_nk, net)

    student = dx.train.exits(net, samples.unlabelled(), loss=loss, teacher=teacher, trunk=trunk, steps=60, **SHORT)
    assert all(y.shape == (64, 10) and torch.allclose(y.sum(1), torch.ones(64)) for y in seen)
    x = samples.take(torch.arange(64)).x
    with torch.no_grad():
        answer = teacher(x).softmax(-1)
        apart = [F.kl_div(n.all_exits(x)[:, 0].log_softmax(-1), answer, reduction="batchmean") for n in (net, student)]
    assert apart[1] < apart[0] / 2
    with pytest.raises(SourceError, match="labels"):
        dx.train.exits(net, samples.unlabelled(), loss=loss, trunk=trunk, steps=1, **SHORT)
    other = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(FitError, match=r"teacher knows \(3,\) classes, the net 10"):
        dx.train.exits(net, samples, loss=loss, teacher=other, trunk="frozen", steps=1, **SHORT)


def test_a_loss_is_told_how_far_training_is_and_what_the_net_costs() -> None:
    net, samples = setting(METHODS["joint"])
    told: list[tuple[float, int]] = []

    def loss(logits_nek: Tensor, y_n: Tensor, net: dx.DynamicNet, done: float) -> Tensor:
        told.append((done, net.trunk_macs_e[-1]))
        return early(logits_nek, y_n, net)

    dx.train.exits(net, samples, loss=loss, steps=4, **SHORT)
    assert told == [(share, net.trunk_macs_e[-1]) for share in (0.0, 0.25, 0.5, 0.75)]


class Uncertain(nn.Module):
    """Learned weights of the exits: Kendall et al., CVPR 2018."""

    def __init__(self) -> None:
        super().__init__()
        self.log_e = nn.Parameter(torch.zeros(2))
        self.seen: list[Tensor] = []

    def forward(self, logits_nek: Tensor, y_n: Tensor, net: dx.DynamicNet) -> Tensor:
        self.seen.append(self.log_e.detach().clone())
        each_e = torch.stack([F.cross_entropy(logits_nk, y_n) for logits_nk in logits_nek[:, :2].unbind(1)])
        return (each_e * (-self.log_e).exp() + self.log_e).sum()


@pytest.mark.parametrize("trunk", ["frozen", "joint"])
def test_a_loss_with_weights_has_a_copy_of_them_trained(trunk: str, tmp_path: Path) -> None:
    net, samples = setting(METHODS["joint"])
    loss = Uncertain()
    saved = tmp_path / "run.ckpt"
    dx.train.exits(net, samples, loss=loss, trunk=trunk, steps=3, checkpoint=saved, **SHORT)
    assert torch.equal(loss.log_e, torch.zeros(2))
    state = torch.load(saved, weights_only=True)["module"]
    assert (state["losses.0.log_e"] != 0).all()


def test_a_killed_run_goes_on_and_another_loss_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, samples = setting(METHODS["joint"])
    given = {**SHORT, "steps": 4, "checkpoint_seconds": 0}
    whole = dx.train.exits(net, samples, loss=early, **given)
    with killed_at_save(monkeypatch):
        dx.train.exits(net, samples, loss=early, checkpoint=tmp_path / "run.ckpt", **given)
    with pytest.raises(FitError, match="belongs to another run"):
        dx.train.exits(net, samples, loss=every_exit, checkpoint=tmp_path / "run.ckpt", **given)
    assert same(whole, dx.train.exits(net, samples, loss=early, checkpoint=tmp_path / "run.ckpt", **given))


WRONG = {
    "is called loss.logits_nek, y, net., and does not take that": lambda logits, y: logits.sum(),
    r"gave a tensor \(64,\); give one number": lambda z, y, net: F.cross_entropy(z[:, 0], y, reduction="none"),
    "gave a float; give one number": lambda z, y, net: z.sum().item(),
    "gave a NoneType": lambda z, y, net: None,
    "a number without a gradient": lambda z, y, net: z.detach().sum(),
    "depends on the last exit alone": lambda z, y, net: F.cross_entropy(z[:, -1], y),
    "give a function loss": "cross_entropy",
    "or a list of them": [],
}


@pytest.mark.parametrize("said", WRONG)
def test_a_loss_that_is_none_is_refused_with_the_reason(said: str) -> None:
    net, samples = setting(METHODS["joint"])
    with pytest.raises(FitError, match=said):
        dx.train.exits(net, samples, loss=WRONG[said], steps=1, **SHORT)


def test_torchs_own_losses_are_told_how_a_loss_is_called() -> None:
    net, samples = setting(METHODS["joint"])
    for loss in (nn.CrossEntropyLoss(), nn.MSELoss()):
        with pytest.raises(FitError, match=r"is called loss\(logits_nek, y, net\)"):
            dx.train.exits(net, samples, loss=loss, steps=1, **SHORT)
    with pytest.raises(FitError, match="cached features, which cannot be augmented"):
        dx.train.exits(net, samples, loss=early, augment=dx.data.augment, steps=1, **SHORT)
    with pytest.raises(FitError, match="trunk='half'; give 'frozen' or 'joint'"):
        dx.train.exits(net, samples, loss=early, trunk="half", steps=1, **SHORT)  # type: ignore[arg-type]


def test_the_kit_sees_a_method_that_changes_the_net_or_forgets_its_seed() -> None:
    net, samples = setting(METHODS["joint"])

    def in_place(net: dx.DynamicNet, source: dx.Source, config: dx.FitConfig) -> dx.DynamicNet:
        next(net.exits.parameters()).data.add_(1.0)
        return dx.train.exits(net, source, config, loss=early)

    with pytest.raises(ConformanceError, match="the net that it was given was changed"):
        check_method(in_place, net, samples)

    def moody(net: dx.DynamicNet, source: dx.Source, config: dx.FitConfig) -> dx.DynamicNet:
        moods.append(1.0)
        return dx.train.exits(net, source, config, loss=lambda z, y, net: len(moods) * early(z, y, net) + z.sum() * 0)

    moods: list[float] = []
    with pytest.raises(ConformanceError, match="the same config gives another net the second time"):
        check_method(moody, net, samples)
    with pytest.raises(ConformanceError, match="it gives a float"):
        check_method(lambda net, source, config: 1.0, net, samples)  # type: ignore[arg-type, return-value]


class Toy(nn.Module):
    """A frozen trunk with BatchNorm and dropout, and a head with both."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)).requires_grad_(False)
        self.head = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, affine=False), nn.Dropout(0.5), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


@pytest.mark.parametrize("before", [True, False])
def test_fit_trains_what_learns_in_training_and_gives_flags_back(before: bool) -> None:
    net = Toy().train(before)
    net.head[0].train(not before)
    flags = [part.training for part in net.modules()]
    inside: list[list[bool]] = []

    def step(module: nn.Module, draw: Generator, done: float) -> Tensor:
        inside.append([part.training for part in net.modules()])
        return module(torch.randn(16, 4, generator=draw)).square().mean()

    dx.fit(net, step, dx.FitConfig(steps=2, progress=False))
    assert inside == [[True, False, False, False, False, True, True, True, True, True]] * 2
    assert [part.training for part in net.modules()] == flags
    assert torch.equal(net.trunk[1].running_mean, torch.zeros(8))
    assert not torch.equal(net.head[1].running_mean, torch.zeros(8))
    with pytest.raises(ZeroDivisionError):
        dx.fit(net, lambda module, draw, done: 1 / 0, dx.FitConfig(steps=2, progress=False))  # type: ignore[arg-type]
    assert [part.training for part in net.modules()] == flags


def test_modes_given_are_left_alone() -> None:
    net = Toy().eval()
    x = torch.randn(16, 4)
    dx.fit(
        net, lambda module, draw, done: module(x).square().mean(), dx.FitConfig(steps=2, progress=False), modes="given"
    )
    assert torch.equal(net.head[1].running_mean, torch.zeros(8))
    with pytest.raises(FitError, match="modes='train'; give 'learning'"):
        dx.fit(net, lambda *_: x.sum(), dx.FitConfig(steps=2, progress=False), modes="train")  # type: ignore[arg-type]


def test_ones_own_step_on_an_attached_net_learns_as_the_method_does() -> None:
    """`attach` hands over in evaluation; heads used to be trained on statistics that nobody had gathered."""
    net, samples = setting(METHODS["joint"])
    assert not net.training
    net.requires_grad_(True)

    def step(module: nn.Module, draw: Generator, done: float) -> Tensor:
        batch = samples.take(torch.randint(len(samples), (64,), generator=draw))
        logits_bek = net.all_exits(batch.x)
        return torch.stack([F.cross_entropy(logits, batch.y) for logits in logits_bek.unbind(1)]).sum()

    by_method = dx.train.joint(net, samples, steps=6, **SHORT)
    dx.fit(net, step, dx.FitConfig(steps=6, **SHORT))
    assert not net.training
    torch.testing.assert_close(errors(net, samples), errors(by_method, samples))
