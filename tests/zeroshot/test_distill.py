"""Distillation on cached features: it teaches the exits, leaves the trunk bit-identical, and survives a kill."""

from pathlib import Path

import pytest
import torch
from torch import nn
from zoo import NETS

import dynext.zeroshot.distill as subject
from dynext.data.samples import Samples
from dynext.errors import FitError, SourceError
from dynext.graph.split import split
from dynext.modules.exits import default_heads
from dynext.net.attach import attach
from dynext.net.dynamic_net import DynamicNet
from dynext.types import InputSpec
from dynext.zeroshot.distill import Features, cache_features, distill, head_logits

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)


def setting(name: str = "residual") -> tuple[DynamicNet, torch.nn.Module, Samples]:
    model, example = NETS[name]()
    staged = split(model, example)
    x = torch.randn(96, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    return attach(staged, default_heads(staged.num_classes)), model, Samples(pixels=x, spec=SPEC, batch_size=32)


def agreement(net: DynamicNet, rows: Samples) -> float:
    answers = net.all_exits(rows.pixels).argmax(-1)
    return float((answers == answers[:, -1:]).float().mean())


def test_exits_learn_and_nothing_else_moves() -> None:
    net, teacher, rows = setting()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    random_state = torch.get_rng_state()
    student = distill(net, teacher, rows, steps=150, lr=5e-3, progress=False)
    assert agreement(student, rows) > agreement(net, rows) + 0.2
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    trunk = student.staged.state_dict()
    assert all(torch.equal(trunk[name], tensor) for name, tensor in net.staged.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())
    assert [m.training for m in student.modules()] == [m.training for m in net.modules()]
    assert [p.requires_grad for p in student.parameters()] == [p.requires_grad for p in net.parameters()]


def test_cached_features_are_what_the_exits_see() -> None:
    net, teacher, rows = setting()
    features = cache_features(net, teacher, rows, progress=False)
    torch.testing.assert_close(head_logits(net, features), net.all_exits(rows.pixels), rtol=1e-2, atol=1e-2)
    batched = cache_features(net, teacher, rows, bn="batch", progress=False)
    assert not torch.allclose(batched.logits_nk, features.logits_nk, atol=1e-2)
    both = Features.join([features, batched])
    assert len(both) == 2 * len(rows)
    torch.testing.assert_close(both.subset(torch.arange(96, 192)).logits_nk, batched.logits_nk)


def test_features_too_large_for_half_precision_are_kept_in_single() -> None:
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    model = nn.Sequential(*layers).eval()
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x[40:] *= 1e6  # in the second batch
    net = attach(split(model, x, ["1"]), default_heads(5))
    features = cache_features(net, model, Samples(pixels=x, spec=SPEC, batch_size=32), progress=False)
    torch.testing.assert_close(head_logits(net, features), net.all_exits(x).detach(), rtol=1e-2, atol=1e-2)
    distill(net, model, features, steps=2, progress=False)


def test_another_teacher_is_asked_itself() -> None:
    net, teacher, rows = setting()
    other = type(teacher)().eval()
    features = cache_features(net, other, rows, progress=False)
    torch.testing.assert_close(features.logits_nk, other(rows.pixels).detach(), rtol=1e-4, atol=1e-4)


def test_survivors_change_what_later_exits_learn_and_only_that() -> None:
    net, teacher, rows = setting()
    features = cache_features(net, teacher, rows, progress=False)
    plain = distill(net, teacher, features, steps=4, progress=False)
    off = distill(net, teacher, features, steps=4, survivors=0.0, progress=False)
    on = distill(net, teacher, features, steps=4, survivors=1.0, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), off.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain.exits[0].parameters(), on.exits[0].parameters(), strict=True))
    assert not torch.equal(plain.exits[-1].classifier.weight, on.exits[-1].classifier.weight)
    with pytest.raises(FitError, match="survivors=1.5"):
        distill(net, teacher, features, survivors=1.5, progress=False)


def test_a_killed_distillation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, teacher, rows = setting()
    features = cache_features(net, teacher, rows, progress=False)
    whole = distill(net, teacher, features, steps=20, progress=False)
    calls = []

    def dying(*arguments: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 10 * len(net.exits):
            raise KeyboardInterrupt
        return loss(*arguments)

    loss = subject.distillation
    monkeypatch.setattr(subject, "distillation", dying)
    with pytest.raises(KeyboardInterrupt):
        distill(
            net, teacher, features, steps=20, progress=False, checkpoint=tmp_path / "heads.ckpt", checkpoint_seconds=0
        )
    monkeypatch.setattr(subject, "distillation", loss)
    resumed = distill(net, teacher, features, steps=20, progress=False, checkpoint=tmp_path / "heads.ckpt")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    fewer = features.subset(torch.arange(48))
    with pytest.raises(FitError, match="belongs to another run .*48 rows"):
        distill(net, teacher, fewer, steps=20, progress=False, checkpoint=tmp_path / "heads.ckpt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_exits_of_a_net_in_half_precision_learn_too(dtype: torch.dtype) -> None:
    net, teacher, rows = setting()
    features = cache_features(net, teacher, rows, progress=False)
    start = net.exits[0].classifier.weight.detach().clone()
    whole = distill(net, None, features, steps=20, progress=False).exits[0].classifier.weight.detach()
    half = distill(net.to(dtype), None, features, steps=20, progress=False)
    assert {p.dtype for p in half.parameters()} == {dtype}
    found = half.exits[0].classifier.weight.detach().float()
    assert float((found - whole).norm()) < 0.5 * float((start - whole).norm())


def test_one_row_alone_has_no_statistics() -> None:
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(192, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3)
    )
    net = attach(split(net.eval(), torch.zeros(2, 3, 8, 8), ["1"]), default_heads(3))
    alone = Samples(pixels=torch.zeros(1, 3, 8, 8), spec=SPEC, bn="batch")
    with pytest.raises(SourceError, match="a batch of one sample has no statistics .* at least two samples"):
        cache_features(net, None, alone, progress=False)


def test_what_cannot_be_distilled_is_refused() -> None:
    net, teacher, rows = setting()
    with pytest.raises(SourceError, match="has no samples"):
        distill(net, teacher, rows.subset(torch.arange(0)), progress=False)
    with pytest.raises(FitError, match="no early exit to train"):
        distill(DynamicNet(net.staged, []), teacher, rows, progress=False)
    with pytest.raises(SourceError, match="NaN or infinity"):
        distill(net, teacher, Samples(pixels=rows.pixels * torch.nan, spec=SPEC), progress=False)
    with pytest.raises(FitError, match=r"the teacher answers \(2, 3\), the net"):
        distill(net, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)), rows, progress=False)
