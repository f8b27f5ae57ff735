"""The generator learns what it is paid for, plays against exits without touching them, and survives a kill."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import dynext.zeroshot.synth.generator_training as subject
from dynext.errors import SourceError
from dynext.net.dynamic_net import DynamicNet
from dynext.seeding import generator as draw_of
from dynext.seeding import seeded
from dynext.types import InputSpec
from dynext.zeroshot.bank import Bank
from dynext.zeroshot.synth.bn_statistics import bn_distance
from dynext.zeroshot.synth.fitted import starts
from dynext.zeroshot.synth.generator import generator
from dynext.zeroshot.synth.generator_net import EDGE, GeneratorNet, grids
from dynext.zeroshot.synth.generator_training import GeneratorSettings, GeneratorTraining, trained
from dynext.zeroshot.synth.method import Work
from dynext.zeroshot.synth.synthesize import synthesize

TINY = GeneratorSettings(steps=4, batch_size=8, width=4, latent=8, ages=2)
QUIET = Work(progress=False)


def made(teacher: nn.Module, spec: InputSpec, settings: GeneratorSettings, n: int = 64, **options) -> torch.Tensor:
    sampler = generator(teacher, spec, 0, settings=settings, **options).prepare(QUIET)
    return sampler.sample(n, draw_of(1))


def trained_generator(
    teacher: nn.Module, spec: InputSpec, settings: GeneratorSettings, against: DynamicNet | None = None
) -> GeneratorTraining:
    return trained(teacher, spec, 0, settings, against=against, pool=None, work=QUIET)


@pytest.mark.parametrize("term", ["bn", "ce"])
def test_statistics_and_classes_come_nearer_with_training(teacher: nn.Module, spec: InputSpec, term: str) -> None:
    alone = {"bn": 0.0, "ce": 0.0, term: 1.0}
    settings = GeneratorSettings(steps=40, batch_size=32, width=8, latent=8, ages=1, lr=1e-2, **alone)
    fresh, grown = (trained_generator(teacher, spec, replace(settings, steps=steps)) for steps in (1, 40))
    z, wanted = torch.randn(64, 8, generator=draw_of(2)), torch.arange(64) % 4
    losses = []
    for training in (fresh, grown):
        with torch.no_grad():
            x = spec.normalize(training.generator(z, wanted))
            losses.append(float(bn_distance(teacher, x) if term == "bn" else F.cross_entropy(teacher(x), wanted)))
    assert losses[1] < 0.8 * losses[0]


def test_classes_are_asked_for_evenly_and_ages_are_mixed(teacher: nn.Module, spec: InputSpec) -> None:
    asked: list[torch.Tensor] = []
    forward = GeneratorNet.forward

    class Spy(GeneratorNet):
        def forward(self, z_bd, class_b, start=None):
            asked.append(class_b)
            return forward(self, z_bd, class_b, start)

    sampler = generator(teacher, spec, 0, settings=TINY).prepare(QUIET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GeneratorNet, "forward", Spy.forward)
        sampler.sample(20, draw_of(0))
        sampler.sample(2, draw_of(0))
        sampler.sample(2, draw_of(1))
    assert [len(classes) for classes in asked[:2]] == [10, 10]
    assert torch.cat(asked[:2]).bincount().tolist() == [5] * 4
    assert len({tuple(torch.cat(asked[i : i + 2]).tolist()) for i in (2, 4)}) == 2


def test_younger_selves_are_kept_on_the_way(teacher: nn.Module, spec: InputSpec) -> None:
    assert GeneratorSettings(steps=300, ages=3).kept_at() == [150, 200]
    assert GeneratorSettings(ages=1).kept_at() == []
    training = trained_generator(teacher, spec, replace(TINY, steps=9, ages=3))
    weights = [net.fill.weight for net in (*training.ages, training.generator)]
    assert len({float(w.detach().sum()) for w in weights}) == 3
    # An age is what an unbroken schedule had at that step: the first steps of the training do not depend on ages.
    assert torch.equal(
        weights[-1], trained_generator(teacher, spec, replace(TINY, steps=9, ages=1)).generator.fill.weight
    )


def test_a_generator_is_trained_against_exits_that_learn(
    teacher: nn.Module, student: DynamicNet, spec: InputSpec
) -> None:
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    alone = trained_generator(teacher, spec, TINY)
    chasing = trained_generator(teacher, spec, TINY, student)
    still = trained_generator(teacher, spec, replace(TINY, chase=False), student)
    unpaid = trained_generator(teacher, spec, replace(TINY, chase=False, adv=0.0), student)
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in student.parameters())
    kept = [exit.classifier.weight for exit in student.exits]
    assert all(torch.equal(e.classifier.weight, k) for e, k in zip(still.exits, kept, strict=True))
    assert not any(torch.equal(e.classifier.weight, k) for e, k in zip(chasing.exits, kept, strict=True))
    paint = [training.generator.fill.weight for training in (alone, unpaid, still, chasing)]
    assert_close(paint[1], paint[0], rtol=1e-3, atol=1e-4)
    assert (paint[2] - paint[0]).abs().max() > 1e-3
    assert not torch.equal(paint[3], paint[2])


def test_exits_get_no_gradient_from_the_generator_nor_the_generator_from_their_learning(
    teacher: nn.Module, student: DynamicNet, spec: InputSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_learning = replace(TINY, bn=0.0, ce=0.0, adv=0.0, ages=1, lr=1e-2)
    with seeded(0):
        fresh = GeneratorNet(spec.shape, 4, latent=8, width=4)
    training = trained_generator(teacher, spec, only_learning, student)
    assert torch.equal(training.generator.fill.weight, fresh.fill.weight)
    monkeypatch.setattr(subject, "distillation", lambda early, answer, temperature: early.sum() * 0)
    training = trained_generator(teacher, spec, replace(TINY, ages=1), student)
    kept = [exit.classifier.weight for exit in student.exits]
    assert all(torch.equal(e.classifier.weight, k) for e, k in zip(training.exits, kept, strict=True))


def test_diversity_is_paid_for(teacher: nn.Module, spec: InputSpec) -> None:
    quick = GeneratorSettings(steps=30, batch_size=16, width=4, latent=8, ages=1, lr=1e-2, bn=0.0)
    plain, diverse = (made(teacher, spec, replace(quick, diversity=d)) for d in (0.0, 5.0))
    assert float(diverse.std(0).mean()) > 1.2 * float(plain.std(0).mean())
    assert torch.isfinite(made(teacher, spec, replace(TINY, batch_size=7, diversity=1.0))).all()


def test_a_warm_generator_starts_at_rows_that_fit() -> None:
    with seeded(0):
        net = GeneratorNet((1, 9, 14), 3, latent=8, width=4, warm=True).eval()
    start = torch.rand(5, 1, 9, 14, generator=draw_of(0))
    painted = net(torch.randn(5, 8, generator=draw_of(1)), torch.arange(5) % 3, start)
    assert_close(painted, start.clamp(EDGE, 1 - EDGE))


def test_warm_rows_are_changes_of_fitted_ones(teacher: nn.Module, spec: InputSpec) -> None:
    settings = replace(TINY, lr=1e-5, ages=1)
    warm = generator(teacher, spec, 0, start="fitted", candidates=8, settings=settings).prepare(QUIET)
    first = starts(teacher, spec, 0, "fitted", candidates=8)
    assert warm.notes == first.notes
    pixels = spec.pixels(first.sample(16, draw_of(5))).clamp(EDGE, 1 - EDGE)
    assert_close(warm.sample(16, draw_of(5)), spec.normalize(pixels), rtol=0, atol=0.01)
    changed = generator(teacher, spec, 0, start="fitted", candidates=8, settings=TINY).prepare(QUIET)
    assert (changed.sample(16, draw_of(5)) - spec.normalize(pixels)).abs().max() > 0.02
    with pytest.raises(SourceError, match="start='objects'; give noise or fitted"):
        generator(teacher, spec, 0, start="objects")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(28, 28), (9, 14), (3, 3), (64, 48), (224, 224)])
def test_any_size(size: tuple[int, int]) -> None:
    assert grids(size)[-1] == size
    assert max(grids(size)[0]) <= 16
    with seeded(0):
        net = GeneratorNet((3, *size), 5, latent=4, width=2).eval()
    painted = net(torch.zeros(2, 4), torch.tensor([0, 4]))
    assert painted.shape == (2, 3, *size)
    assert bool((painted >= 0).all() and (painted <= 1).all())


def test_a_killed_training_goes_on_to_the_same_rows(
    teacher: nn.Module, student: DynamicNet, spec: InputSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(folder: Path) -> Bank:
        options = {"settings": replace(TINY, steps=6, ages=3), "against": student}
        return synthesize(
            teacher,
            shape=spec.shape,
            n=8,
            seed=0,
            method="generator",
            spec=spec,
            folder=folder,
            progress=False,
            **options,
        )

    whole = make(tmp_path / "whole")
    keep_age, steps = GeneratorTraining.keep_age, []
    monkeypatch.setattr(subject, "CHECKPOINT_SECONDS", 0.0)

    def dying(training: GeneratorTraining, settings: GeneratorSettings, done: float) -> None:
        steps.append(done)
        if len(steps) == 5:
            raise KeyboardInterrupt
        keep_age(training, settings, done)

    monkeypatch.setattr(GeneratorTraining, "keep_age", dying)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "killed")
    assert (tmp_path / "killed" / ".generator.ckpt").exists()
    resumed = make(tmp_path / "killed")
    assert len(steps) == 5 + 2, "the steps before the kill were taken again"
    for folder in ("whole", "killed"):
        assert not list((tmp_path / folder).glob(".*")), "what a finished bank does not need is gone"
    assert torch.equal(resumed.shards[0], whole.shards[0])
    again = make(tmp_path / "killed")
    assert len(steps) == 7, "a finished bank was trained for again"
    assert again.provenance == resumed.provenance


def test_precision_follows_the_teacher(teacher: nn.Module, spec: InputSpec) -> None:
    found = made(teacher.double(), spec, TINY, 4)
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()


def test_the_checkpoint_of_another_student_is_not_gone_on_with(
    teacher: nn.Module, student: DynamicNet, spec: InputSpec, tmp_path: Path
) -> None:
    def make(net: DynamicNet | None) -> Bank:
        return synthesize(
            teacher, shape=spec.shape, n=4, seed=0, method="generator", spec=spec, folder=tmp_path / "bank",
            progress=False, settings=TINY, against=net,
        )  # fmt: skip

    told = make(student).provenance.options["against"]
    assert told.startswith("DynamicNet ")
    with torch.no_grad():
        student.exits[0].classifier.bias += 1
    with pytest.raises(SourceError, match=f"options was .*{told}"):
        make(student)


def test_large_rows_come_in_small_batches_and_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    big = InputSpec(shape=(3, 224, 224), mean=(0.5,) * 3, std=(0.25,) * 3)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)).eval()
    seen: list[torch.Size] = []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    settings = GeneratorSettings(steps=1, width=2, latent=4, ages=1)
    monkeypatch.setattr("dynext.zeroshot.synth.generator.POOL_VALUES", 32 * 3 * 224 * 224)
    generator(net, big, 0, start="fitted", candidates=7, settings=settings).prepare(QUIET)
    pooled = sum(shape[0] for shape in seen[-4:-2])
    assert pooled == 32
    assert seen[-1] == (16, 3, 224, 224)


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"batch_size": 1}, {"lr": 0.0}, {"ages": 0}, {"steps": 2, "ages": 3}]
)
def test_nonsense_is_refused(changes: dict) -> None:
    with pytest.raises(SourceError, match="give"):
        GeneratorSettings(**changes)
