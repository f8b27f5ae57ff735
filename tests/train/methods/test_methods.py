"""Every method of the table: it learns, keeps its promises, is saved, resumed and reported on."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gated_nets import gated_net
from killed import killed_at_save
from methods import METHODS, SPEC, Method, config, setting, trained

import dynext as dx
from dynext.errors import FitError, SourceError, SplitError
from dynext.net.cascade import cascade
from dynext.testing import check_net

ALL = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def losses(net: dx.DynamicNet, samples: dx.data.Samples) -> torch.Tensor:
    """Cross-entropy of each exit ``[e]``."""
    with torch.no_grad():
        logits_bek = net.all_exits(samples.take(torch.arange(len(samples))).x)
    return torch.stack([torch.nn.functional.cross_entropy(logits, samples.y) for logits in logits_bek.unbind(1)])


class Pieces:
    """Batches as given."""

    shape, bn = (3, 8, 8), "running"

    def __init__(self, batches: tuple[dx.data.Batch, ...]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return sum(len(batch.x) for batch in self.batches)

    def __iter__(self) -> Iterator[dx.data.Batch]:
        return iter(self.batches)


def test_there_are_methods() -> None:
    assert len(METHODS) >= 13


@ALL
def test_a_method_trains_and_its_net_is_one_like_any_other(method: Method, tmp_path: Path) -> None:
    net, samples = setting(method)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    flags, state = [m.training for m in net.modules()], torch.get_rng_state()
    x = samples.take(torch.arange(12)).x
    final = net(x)

    student, policy = trained(method, net, samples, config(steps=40))

    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert flags == [m.training for m in net.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert not any(m.training for m in student.modules())
    assert (student.cascade or {}).get("rule") == method.cascade
    learned, fresh = losses(student, samples), losses(net, samples)
    assert (learned[:2] < fresh[:2]).all()
    if method.frozen:
        assert torch.equal(student(x), final)
    elif method.cascade not in ("mean", "surest"):
        assert learned[-1] < fresh[-1]
    check_net(student, x)

    table = dx.collect(student, samples)
    policy = policy or dx.choose(table, budget=0.9, rule=dx.policies.SafeRule(min_support=0))
    outcome = dx.simulate(table, policy)
    assert f"{outcome.accuracy:.2%}" in str(dx.report(table, policy))
    assert student.run(x, policy).macs.tolist() == outcome.macs_n[:12].tolist()

    dx.save(student, tmp_path / "net", policy=policy, spec=SPEC)
    again = dx.load(tmp_path / "net", model=net.staged)
    torch.testing.assert_close(again.net.all_exits(x), student.all_exits(x), rtol=0, atol=0)
    assert again.policy == policy
    assert again.net.cascade == student.cascade


@ALL
def test_a_killed_run_ends_where_an_unbroken_one_ends(
    method: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, samples = setting(method)
    whole, _ = trained(method, net, samples, config(steps=4, checkpoint=tmp_path / "a" / "run.ckpt"))
    broken = config(steps=4, checkpoint=tmp_path / "b" / "run.ckpt")
    with killed_at_save(monkeypatch):
        trained(method, net, samples, broken)
    assert any((tmp_path / "b").iterdir())
    resumed, _ = trained(method, net, samples, broken)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_run_with_other_batches_or_samples_is_another_run(tmp_path: Path) -> None:
    net, samples = setting(METHODS["joint"])
    saved = config(steps=1, checkpoint=tmp_path / "run.ckpt")
    dx.train.joint(net, samples, saved, batch_size=8)
    with pytest.raises(FitError, match=r"was weights .*, batches of 8 from 64 rows, is .*, batches of 16 from 64 rows"):
        dx.train.joint(net, samples, saved, batch_size=16)
    with pytest.raises(FitError, match="batches of 8 from 40 rows"):
        dx.train.joint(net, samples.subset(torch.arange(40)), saved, batch_size=8)


def same_weights(one: dx.DynamicNet, two: dx.DynamicNet) -> bool:
    other = two.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in one.state_dict().items())


def test_a_config_its_fields_as_keywords_and_both_are_the_same(tmp_path: Path) -> None:
    net, samples = setting(METHODS["joint"])
    whole = dx.FitConfig(steps=3, lr=5e-3, batch_size=16, progress=False)
    by_config = dx.train.joint(net, samples, whole)
    assert same_weights(by_config, dx.train.joint(net, samples, steps=3, lr=5e-3, batch_size=16, progress=False))
    assert same_weights(by_config, dx.train.joint(net, samples, replace(whole, steps=9, seed=4), steps=3, seed=0))
    assert not same_weights(by_config, dx.train.joint(net, samples, whole, seed=1))
    dx.train.joint(net, samples, steps=1, checkpoint=tmp_path / "run.ckpt", progress=False)
    identity = torch.load(tmp_path / "run.ckpt", weights_only=True)["identity"]
    assert identity["about"].endswith("batches of 64 from 64 rows"), "what the method takes where it is told nothing"
    with pytest.raises(FitError, match=r"there is no option step; did you mean steps=\?"):
        dx.train.joint(net, samples, step=3)


@pytest.mark.parametrize("name", ["joint", "distillation_last", "zero_time_waste"])
def test_a_trunks_rate_that_the_method_has_no_use_for_is_refused(name: str) -> None:
    net, samples = setting(METHODS[name])
    with pytest.raises(FitError, match=r"trunk_lr=0.001, but this method .*; leave trunk_lr out"):
        trained(METHODS[name], net, samples, replace(config(steps=1), trunk_lr=1e-3))
    trained(METHODS[name], net, samples, replace(config(steps=1), trunk_lr=0.0 if METHODS[name].frozen else 5e-3))


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.self_taught])
def test_without_labels_exits_learn_the_full_nets_answers(name: str) -> None:
    net, samples = setting(METHODS[name])
    student, _ = trained(METHODS[name], net, samples.unlabelled(), config(steps=60))
    x = samples.take(torch.arange(len(samples))).x

    def gap(of: dx.DynamicNet) -> torch.Tensor:
        with torch.no_grad():
            logits_bek = of.all_exits(x)
        target_bk = logits_bek[:, -1].softmax(-1)
        return torch.stack([torch.nn.functional.cross_entropy(early, target_bk) for early in logits_bek.unbind(1)])

    assert (gap(student)[:2] < gap(net)[:2]).all()
    some = dx.data.Batch(x=x[:2], y=samples.y[:2]), dx.data.Batch(x=x[2:4], y=None)
    assert torch.equal(student(x), net(x))
    with pytest.raises(SourceError, match="2 labels for 4 samples"):
        trained(METHODS[name], net, Pieces(some), config(steps=1))


@ALL
def test_what_cannot_be_learned_from_is_refused(method: Method) -> None:
    net, samples = setting(method)
    if not method.self_taught:
        with pytest.raises(SourceError, match="labels"):
            trained(method, net, samples.unlabelled(), config(steps=1))
    with pytest.raises(SourceError, match="labels from .* to 19 of torch.int64; the net has 10 classes"):
        trained(method, net, replace(samples, y=samples.y + 10 * (samples.y == 9)), config(steps=1))
    spec = dx.InputSpec(shape=(3, 4, 4), mean=SPEC.mean, std=SPEC.std)
    small = dx.data.Samples(pixels=samples.pixels[..., :4, :4], y=samples.y, spec=spec)
    with pytest.raises(SourceError, match=r"samples of shape \(3, 4, 4\)"):
        trained(method, net, small, config(steps=1))
    if method.cascade is not None or method.frozen:
        with pytest.raises((FitError, SplitError), match="already"):
            trained(method, cascade(net, "boost"), samples, config(steps=1))
    if method.cascade is not None:
        with pytest.raises(FitError, match="this net has gates"):
            trained(method, gated_net(), samples, config(steps=1))
    bare = dx.DynamicNet(net.staged, [])
    with pytest.raises(FitError, match=r"no early exit|1 exits"):
        trained(method, bare, samples, config(steps=1))
