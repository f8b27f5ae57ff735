"""Shares are those whose mixture the teacher likes best; the samples kept are the useful ones."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import dynext.zeroshot.synth.synthesize as subject
from dynext.errors import SourceError
from dynext.modules.modes import batch_statistics
from dynext.net.dynamic_net import DynamicNet
from dynext.seeding import generator
from dynext.types import InputSpec
from dynext.zeroshot.bank import Bank
from dynext.zeroshot.synth.bn_statistics import bn_distance
from dynext.zeroshot.synth.inversion import Inversion
from dynext.zeroshot.synth.mixture import affordable, dealt
from dynext.zeroshot.synth.mixture_weights import best_shares, entropy, mixed_loss, moments
from dynext.zeroshot.synth.procedural import leaves, objects
from dynext.zeroshot.synth.sample_filter import Filter, chosen, keep, ranks
from dynext.zeroshot.synth.styles import LEAVES, OBJECTS
from dynext.zeroshot.synth.synthesize import synthesize
from dynext.zeroshot.synth.terms import competition

FIRST = {"confidence": 0.0, "disagreement": 0.0, "diversity": 0.0, "balance": 0.0}


def kinds(spec: InputSpec, n: int = 48) -> list[torch.Tensor]:
    painted = leaves(n, spec.shape, generator(0), LEAVES), objects(n, spec.shape, generator(1), OBJECTS)
    return [spec.normalize(x) for x in painted]


def trained_on(spec: InputSpec, rows: list[torch.Tensor]) -> nn.Module:
    """A net whose BatchNorms have seen all of these, once."""
    net = nn.Sequential(
        nn.BatchNorm2d(3, momentum=1.0), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=1.0), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(net[1].weight.shape, generator=generator(2)))
        net[-1].weight.zero_()
        net[-1].bias.zero_()
        net(torch.cat(rows))
    return net.eval()


def make(teacher: nn.Module, spec: InputSpec, n: int = 24, folder: Path | None = None, **options) -> Bank:
    options = {"methods": ("leaves", "objects"), **options}
    return synthesize(
        teacher, shape=spec.shape, n=n, seed=0, method="mixture", spec=spec, folder=folder, progress=False, **options
    )


def test_a_mixtures_loss_is_that_of_its_rows_together(teacher: nn.Module, spec: InputSpec) -> None:
    one, other = kinds(spec)
    found = [moments(teacher, x) for x in (one, other)]
    together = torch.cat([one, other, one])
    with torch.no_grad():
        mean_k = teacher(together).softmax(-1).mean(0).double()
    wanted = bn_distance(teacher, together).item() + 1 - float(entropy(mean_k))
    share = torch.tensor([2 / 3, 1 / 3], dtype=torch.double)
    assert_close(mixed_loss(share, [m for m, _ in found], found[0][1]).item(), wanted, rtol=1e-4, atol=1e-5)


def test_entropy_is_one_for_even_and_zero_for_one() -> None:
    assert float(entropy(torch.full((5,), 0.2))) == pytest.approx(1)
    assert str(float(entropy(torch.tensor([0.0, 1.0, 0.0])))) == "0.0"
    assert float(entropy(torch.tensor([0.5, 0.5, 0.0]))) == pytest.approx(math.log(2) / math.log(3))


@pytest.mark.parametrize(("share", "expected"), [((1, 1), 0.5), ((2, 1), 2 / 3), ((1, 0), 0.9), ((0, 1), 0.1)])
def test_the_shares_a_teacher_was_trained_on_are_found(spec: InputSpec, share: tuple, expected: float) -> None:
    rows = [x for x, times in zip(kinds(spec), share, strict=True) for _ in range(times)]
    net = trained_on(spec, rows)
    found = [moments(net, x) for x in kinds(spec)]
    best = best_shares([m for m, _ in found], found[0][1], least=0.1)
    assert best[0] == pytest.approx(expected, abs=0.03)
    assert sum(best) == pytest.approx(1)


def test_without_batch_norm_the_classes_decide(layer_norm_teacher: nn.Module, spec: InputSpec) -> None:
    found = [moments(layer_norm_teacher, x) for x in kinds(spec)]
    assert len(found[0][1].mean_c) == 0
    loss = mixed_loss(torch.tensor([1.0, 0.0], dtype=torch.double), [m for m, _ in found], found[0][1])
    assert loss.item() == pytest.approx(1 - float(entropy(found[0][0].answer_k)))


def test_measuring_leaves_no_trace(teacher: nn.Module, spec: InputSpec) -> None:
    teacher.train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    moments(teacher, kinds(spec)[0])
    keep(teacher, teacher.linear, kinds(spec)[0], 8, Filter())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(module.training for module in teacher.modules())
    assert not any(module._forward_pre_hooks for module in teacher.modules())


def test_iterative_methods_get_a_half_at_most() -> None:
    assert affordable(["fitted", "inversion"], [0.1, 0.9]) == pytest.approx([0.5, 0.5])
    assert affordable(["leaves", "generator", "objects"], [0.1, 0.8, 0.1]) == pytest.approx([0.25, 0.5, 0.25])
    assert affordable(["fitted", "inversion"], [0.9, 0.1]) == [0.9, 0.1]
    assert affordable(["inversion", "impressions"], [0.5, 0.5]) == [0.5, 0.5]


def test_rows_are_dealt_by_share_and_rightly_on_average() -> None:
    draw = generator(0)
    dealings = torch.tensor([dealt(7, [0.25, 0.7, 0.05], draw) for _ in range(2000)])
    assert bool((dealings.sum(1) == 7).all())
    assert bool((dealings >= 0).all())
    assert_close(dealings.double().mean(0), 7 * torch.tensor([0.25, 0.7, 0.05], dtype=torch.double), rtol=0, atol=0.05)
    assert dealt(10, [0.5, 0.5], draw) == [5, 5]


def test_the_surest_rows_are_kept(teacher: nn.Module, spec: InputSpec) -> None:
    x = kinds(spec)[0]
    kept = keep(teacher, teacher.linear, x, 12, Filter(**{**FIRST, "confidence": 1.0}))
    with torch.no_grad(), batch_statistics(teacher):
        sure_n = teacher(x).softmax(-1).amax(-1)
    assert kept.tolist() == sure_n.topk(12).indices.sort().values.tolist()


def test_rows_on_which_exits_disagree_are_kept(teacher: nn.Module, student: DynamicNet, spec: InputSpec) -> None:
    x = kinds(spec)[0]
    config = Filter(**{**FIRST, "disagreement": 1.0})
    kept = keep(teacher, teacher.linear, x, 12, config, student)
    with torch.no_grad(), batch_statistics(student.staged):
        logits = student.all_exits(x)
        apart_n = competition(logits[:, :-1], logits[:, -1])
    assert set(kept.tolist()) == set(apart_n.topk(12).indices.tolist())


def test_unlike_rows_of_different_classes_are_kept() -> None:
    feature = torch.eye(3).repeat_interleave(5, 0) + 0.01 * torch.randn(15, 3, generator=generator(0))
    same, config = torch.zeros(15, dtype=torch.long), Filter(**{**FIRST, "diversity": 1.0})
    assert sorted(i // 5 for i in chosen(torch.zeros(15), feature, same, 3, config).tolist()) == [0, 1, 2]
    by_class = torch.tensor([0] * 13 + [1, 2])
    picked = chosen(torch.zeros(15), torch.ones(15, 3), by_class, 3, Filter(**{**FIRST, "balance": 1.0}))
    assert by_class[picked].tolist() == [0, 1, 2]
    assert len(set(chosen(torch.zeros(15), feature, same, 15, Filter()).tolist())) == 15


def test_ranks_go_from_zero_to_one_by_order() -> None:
    assert ranks(torch.tensor([5.0, -1.0, 100.0])).tolist() == [0.5, 0.0, 1.0]
    assert ranks(torch.tensor([7.0])).tolist() == [0.0]


def test_shares_and_what_they_were_chosen_by_are_told(teacher: nn.Module, spec: InputSpec) -> None:
    notes = make(teacher, spec).provenance.notes
    assert set(notes["shares"]) == {"leaves", "objects"}
    assert sum(notes["shares"].values()) == pytest.approx(1, abs=1e-3)
    assert notes["mixed_loss"] <= min(notes["loss"].values()) + 0.05
    given = make(teacher, spec, shares=(3, 1)).provenance
    assert given.notes["shares"] == {"leaves": 0.75, "objects": 0.25}
    assert given.options["shares"] == [3, 1]


def test_nothing_is_filtered_without_oversampling(teacher: nn.Module, spec: InputSpec) -> None:
    bank = make(teacher, spec, shares=(1, 0), settings=Filter(oversample=1.0))
    plain = synthesize(teacher, shape=spec.shape, n=24, seed=0, method="leaves", spec=spec, progress=False)
    filtered = make(teacher, spec, shares=(1, 0))
    found = [b.take(torch.arange(24)).x for b in (bank, plain, filtered)]
    assert found[0].shape == found[1].shape == found[2].shape
    assert len({row.numpy().tobytes() for row in found[2]}) == 24


def test_a_killed_mixture_goes_on_to_the_same_rows(teacher, student, spec, tmp_path: Path, monkeypatch) -> None:
    options = {"methods": ("leaves", "inversion"), "against": student, "shares": (1, 1)}
    options["parts"] = {"inversion": {"settings": Inversion(iterations=1), "start": "objects"}}
    monkeypatch.setattr("dynext.zeroshot.synth.mixture.samples_per_chunk", lambda shape: 16)
    whole = make(teacher, spec, n=40, folder=tmp_path / "whole", **options)
    write = subject.write_shard

    def dying(folder: Path, number: int, x: torch.Tensor) -> None:
        if number == 1:
            raise KeyboardInterrupt
        write(folder, number, x)

    with monkeypatch.context() as patch:
        patch.setattr(subject, "write_shard", dying)
        with pytest.raises(KeyboardInterrupt):
            make(teacher, spec, n=40, folder=tmp_path / "killed", **options)
    resumed = make(teacher, spec, n=40, folder=tmp_path / "killed", **options)
    assert len(resumed.shards) == 3
    assert all(torch.equal(a, b) for a, b in zip(whole.shards, resumed.shards, strict=True))
    assert resumed.provenance.notes == whole.provenance.notes


def test_the_student_reaches_the_methods_that_can_use_it(teacher, student, spec: InputSpec) -> None:
    options = {"methods": ("leaves", "inversion"), "shares": (0, 1), "settings": Filter(oversample=1.0)}
    options["parts"] = {"inversion": {"settings": Inversion(iterations=3, compete=20.0), "start": "objects"}}
    alone, against = (make(teacher, spec, against=net, **options).shards[0] for net in (None, student))
    assert not torch.equal(alone, against)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"methods": ("leafs",)}, "methods leafs; give different ones among gaussian"),
        ({"methods": ("mixture", "leaves")}, "methods mixture, leaves; give"),
        ({"methods": ("leaves", "leaves")}, "give different ones"),
        ({"methods": ()}, "methods none"),
        ({"shares": (1,)}, r"shares \(1,\) for leaves, objects; give one each"),
        ({"shares": (1, -1)}, "none negative"),
        ({"shares": (0, 0)}, "not all 0"),
        ({"parts": {"pink": {}}}, "options for pink, which is not among"),
        ({"parts": {"leaves": {"stylee": OBJECTS}}}, "method leaves has no option stylee; it has style"),
        ({"methods": ("leaves", "patches")}, "one image of yours"),
    ],
)
def test_nonsense_is_refused(teacher: nn.Module, spec: InputSpec, options: dict, told: str) -> None:
    with pytest.raises(SourceError, match=told):
        make(teacher, spec, **options)


def test_an_undersampled_filter_is_refused() -> None:
    with pytest.raises(SourceError, match="oversample=0.5; give 1"):
        replace(Filter(), oversample=0.5)
