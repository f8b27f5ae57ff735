"""A bank's quality says what the teacher makes of it, in figures that can be checked."""

import json
from dataclasses import replace

import pytest
import torch
from reference import synthesis as slow
from torch import nn

import dynext.zeroshot.synth.quality as subject
from dynext.errors import SourceError
from dynext.modules.modes import batch_statistics
from dynext.net.dynamic_net import DynamicNet
from dynext.seeding import generator
from dynext.types import InputSpec
from dynext.zeroshot.bank import Bank
from dynext.zeroshot.synth.bn_statistics import bn_distance
from dynext.zeroshot.synth.quality import diversity, quality
from dynext.zeroshot.synth.synthesize import synthesize
from dynext.zeroshot.synth.terms import competition


def bank(teacher: nn.Module, spec: InputSpec, n: int = 40, method: str = "leaves") -> Bank:
    return synthesize(teacher, shape=spec.shape, n=n, seed=0, method=method, spec=spec, progress=False)


def test_the_figures_are_what_they_say(teacher: nn.Module, student: DynamicNet, spec: InputSpec) -> None:
    rows = bank(teacher, spec)
    x = rows.take(torch.arange(40)).x
    with torch.no_grad():
        wanted = bn_distance(teacher, x).item()
        with batch_statistics(student.staged):
            logits = student.all_exits(x)
    answer = logits[:, -1]
    found = quality(rows, teacher, student)
    assert found.bn_loss == pytest.approx(wanted, rel=1e-4)
    assert found.confidence == pytest.approx(float(answer.softmax(-1).amax(-1).mean()), rel=1e-4)
    share = answer.argmax(-1).bincount(minlength=4).double() / 40
    entropy = -sum(float(p) * float(p.log()) for p in share if p > 0) / torch.tensor(4.0).log().item()
    assert found.class_balance == pytest.approx(entropy)
    assert found.classes_seen == int((share > 0).sum())
    apart = float(competition(logits[:, :-1], answer).mean()) / torch.tensor(2.0).log().item()
    assert found.disagreement == pytest.approx(apart, rel=1e-3)
    assert 0 < found.disagreement < 1
    assert (found.rows, found.looked_at, found.num_classes, found.method) == (40, 40, 4, "leaves")
    assert found.rows_per_second == pytest.approx(40 / rows.provenance.seconds)


def test_diversity_is_the_mean_over_pairs() -> None:
    feature = torch.randn(12, 5, generator=generator(0))
    assert diversity(feature) == pytest.approx(slow.mean_cosine_distance(feature.double().numpy()))
    assert diversity(torch.ones(6, 5)) == pytest.approx(0, abs=1e-9)
    assert diversity(torch.ones(1, 5)) == 0


def test_worse_rows_have_worse_figures(teacher: nn.Module, spec: InputSpec) -> None:
    rows = bank(teacher, spec)
    one = Bank(shards=(rows.shards[0][:1].repeat(40, 1, 1, 1),), provenance=rows.provenance)
    good, poor = quality(rows, teacher), quality(one, teacher)
    assert poor.diversity < 1e-6 < good.diversity
    assert poor.classes_seen == 1
    assert poor.class_balance == 0
    assert poor.bn_loss > good.bn_loss


def test_it_prints_and_goes_to_json(teacher: nn.Module, student: DynamicNet, spec: InputSpec) -> None:
    found = quality(bank(teacher, spec), teacher, student)
    text = str(replace(found, seconds=2.0))
    assert "40 samples by leaves in 2.0 s, 20.0 samples a second; 40 looked at:" in text
    for word in ("BN loss", "class balance", "classes seen", "confidence", "diversity", "disagreement"):
        assert word in text
    assert "accuracy" not in text
    told = json.loads(json.dumps(found.to_dict()))
    assert told["rows_per_second"] > 0
    assert set(told) == set(vars(found)) | {"rows_per_second"}
    alone = quality(bank(teacher, spec), teacher)
    assert alone.disagreement is None
    assert "disagreement" not in str(alone)
    assert replace(found, seconds=0.0).rows_per_second is None


def test_a_large_bank_is_looked_at_in_part(teacher: nn.Module, spec: InputSpec, monkeypatch) -> None:
    monkeypatch.setattr(subject, "LOOKED_AT", 25)
    rows = replace(bank(teacher, spec), batch_size=8)
    found = quality(rows, teacher)
    assert found.looked_at == 25
    assert found.rows == 40
    sizes = [len(part) for part in subject._spread(rows)]
    assert sizes == [7, 6, 6, 6], "a batch of one sample has no statistics"
    assert torch.cat(subject._spread(rows)).tolist() == sorted(set(torch.cat(subject._spread(rows)).tolist()))


def test_without_batch_norm_and_without_a_last_layer(layer_norm_teacher: nn.Module, spec: InputSpec) -> None:
    found = quality(bank(layer_norm_teacher, spec), layer_norm_teacher)
    assert found.bn_loss is None
    assert "no BatchNorm" in str(found)

    class Sums(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

    assert quality(bank(Sums(), spec), Sums()).diversity > 0


def test_a_dead_class_is_told(teacher: nn.Module, spec: InputSpec) -> None:
    with torch.no_grad():
        teacher.linear.bias[1] = -1e4
    found = quality(bank(teacher, spec, method="gaussian"), teacher)
    assert found.classes_seen < found.num_classes == 4
    assert "of 4 classes seen" in str(found)


def test_measuring_changes_nothing(teacher: nn.Module, student: DynamicNet, spec: InputSpec) -> None:
    teacher.train()
    nets = (teacher, student)
    before = [{name: tensor.clone() for name, tensor in net.state_dict().items()} for net in nets]
    rows = bank(teacher, spec)
    assert quality(rows, teacher, student) == quality(rows, teacher, student)
    for net, kept in zip(nets, before, strict=True):
        assert all(torch.equal(kept[name], tensor) for name, tensor in net.state_dict().items())
    assert all(module.training for module in teacher.modules())


def test_what_does_not_fit_is_refused(teacher: nn.Module, student: DynamicNet, spec: InputSpec) -> None:
    rows = bank(teacher, spec)
    with pytest.raises(SourceError, match="no dynamic net"):
        quality(rows, teacher, teacher)  # type: ignore[arg-type]
    with torch.no_grad():
        teacher.linear.bias[0] = torch.nan
    with pytest.raises(SourceError, match="NaN or infinity"):
        quality(rows, teacher)
