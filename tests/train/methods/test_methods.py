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


def losses(net: dx.DynamicNet, rows: dx.data.Samples) -> torch.Tensor:
    """Cross-entropy of each exit ``[e]``."""
    with torch.no_grad():
        logits_bek = net.all_exits(rows.take(torch.arange(len(rows))).x)
    return torch.stack([torch.nn.functional.cross_entropy(logits, rows.y) for logits in logits_bek.unbind(1)])


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
    net, rows = setting(method)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    flags, state = [m.training for m in net.modules()], torch.get_rng_state()
    x = rows.take(torch.arange(12)).x
    final = net(x)

    found, policy = trained(method, net, rows, config(steps=40))

    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert flags == [m.training for m in net.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert not any(m.training for m in found.modules())
    assert (found.cascade or {}).get("rule") == method.cascade
    learned, fresh = losses(found, rows), losses(net, rows)
    assert (learned[:2] < fresh[:2]).all()
    if method.frozen:
        assert torch.equal(found(x), final)
    elif method.cascade not in ("mean", "surest"):
        assert learned[-1] < fresh[-1]
    check_net(found, x)

    table = dx.collect(found, rows)
    policy = policy or dx.choose(table, budget=0.9, rule=dx.policies.SafeRule(min_support=0))
    outcome = dx.simulate(table, policy)
    told = str(dx.report(table, policy))
    assert f"{outcome.accuracy:.2%}" in told
    assert found.run(x, policy).macs.tolist() == outcome.macs_n[:12].tolist()

    dx.save(found, tmp_path / "net", policy=policy, spec=SPEC)
    again = dx.load(tmp_path / "net", model=net.staged)
    torch.testing.assert_close(again.net.all_exits(x), found.all_exits(x), rtol=0, atol=0)
    assert again.policy == policy
    assert again.net.cascade == found.cascade


@ALL
def test_a_killed_run_ends_where_an_unbroken_one_ends(
    method: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, rows = setting(method)
    whole, _ = trained(method, net, rows, config(steps=4, checkpoint=tmp_path / "a" / "run.ckpt"))
    broken = config(steps=4, checkpoint=tmp_path / "b" / "run.ckpt")
    with killed_at_save(monkeypatch):
        trained(method, net, rows, broken)
    assert any((tmp_path / "b").iterdir())
    resumed, _ = trained(method, net, rows, broken)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_run_with_other_batches_or_rows_is_another_run(tmp_path: Path) -> None:
    net, rows = setting(METHODS["joint"])
    kept = config(steps=1, checkpoint=tmp_path / "run.ckpt")
    dx.train.joint(net, rows, kept, batch_size=8)
    with pytest.raises(
        FitError, match=r"was weights .*, batches of 8 from 64 samples, is .*, batches of 16 from 64 samples"
    ):
        dx.train.joint(net, rows, kept, batch_size=16)
    with pytest.raises(FitError, match="batches of 8 from 40 samples"):
        dx.train.joint(net, rows.subset(torch.arange(40)), kept, batch_size=8)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.self_taught])
def test_without_labels_exits_learn_the_full_nets_answers(name: str) -> None:
    net, rows = setting(METHODS[name])
    found, _ = trained(METHODS[name], net, rows.unlabelled(), config(steps=60))
    x = rows.take(torch.arange(len(rows))).x

    def gap(of: dx.DynamicNet) -> torch.Tensor:
        with torch.no_grad():
            logits_bek = of.all_exits(x)
        target_bk = logits_bek[:, -1].softmax(-1)
        return torch.stack([torch.nn.functional.cross_entropy(early, target_bk) for early in logits_bek.unbind(1)])

    assert (gap(found)[:2] < gap(net)[:2]).all()
    some = dx.data.Batch(x=x[:2], y=rows.y[:2]), dx.data.Batch(x=x[2:4], y=None)
    assert torch.equal(found(x), net(x))
    with pytest.raises(SourceError, match="2 labels for 4 samples"):
        trained(METHODS[name], net, Pieces(some), config(steps=1))


@ALL
def test_what_cannot_be_learned_from_is_refused(method: Method) -> None:
    net, rows = setting(method)
    if not method.self_taught:
        with pytest.raises(SourceError, match="labels"):
            trained(method, net, rows.unlabelled(), config(steps=1))
    with pytest.raises(SourceError, match="labels from .* to 19 of torch.int64; the net has 10 classes"):
        trained(method, net, replace(rows, y=rows.y + 10 * (rows.y == 9)), config(steps=1))
    spec = dx.InputSpec(shape=(3, 4, 4), mean=SPEC.mean, std=SPEC.std)
    small = dx.data.Samples(pixels=rows.pixels[..., :4, :4], y=rows.y, spec=spec)
    with pytest.raises(SourceError, match=r"samples of shape \(3, 4, 4\)"):
        trained(method, net, small, config(steps=1))
    if method.cascade is not None or method.frozen:
        with pytest.raises((FitError, SplitError), match="already"):
            trained(method, cascade(net, "boost"), rows, config(steps=1))
    if method.cascade is not None:
        with pytest.raises(FitError, match="this net has gates"):
            trained(method, gated_net(), rows, config(steps=1))
    bare = dx.DynamicNet(net.staged, [])
    with pytest.raises(FitError, match=r"no early exit|1 exits"):
        trained(method, bare, rows, config(steps=1))
