"""Inversion moves samples towards what the teacher's statistics and classes ask for, and moves nothing else."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from reference import synthesis as slow
from torch import nn
from torch.testing import assert_close

from dynext.errors import SourceError
from dynext.net.dynamic_net import DynamicNet
from dynext.seeding import generator
from dynext.types import InputSpec
from dynext.zeroshot.synth.bn_statistics import bn_distance
from dynext.zeroshot.synth.inversion import Inversion, balanced_targets, inversion, invert, total_variation
from dynext.zeroshot.synth.procedural import leaves
from dynext.zeroshot.synth.terms import competition

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
STILL = Inversion(jitter=0, flip=False)


def start(n: int = 32) -> torch.Tensor:
    return SPEC.normalize(leaves(n, SPEC.shape, generator(0)))


def test_statistics_come_nearer(teacher: nn.Module) -> None:
    x = start()
    found = invert(teacher, x, SPEC, generator(1), replace(STILL, ce=0.0, iterations=30))
    assert bn_distance(teacher, found).item() < 0.8 * bn_distance(teacher, x).item()


def test_classes_come_nearer(teacher: nn.Module) -> None:
    x = start()
    target = balanced_targets(teacher(x).detach())
    found = invert(teacher, x, SPEC, generator(1), replace(STILL, bn=0.0, ce=1.0, iterations=30))
    with torch.no_grad():
        before, after = (float(F.cross_entropy(teacher(rows), target)) for rows in (x, found))
    assert after < before - 0.1


def test_pixels_stay_pixels_and_the_start_stays(teacher: nn.Module) -> None:
    x = start()
    kept = x.clone()
    found = invert(teacher, x, SPEC, generator(1), Inversion(iterations=10, lr=2.0))
    assert torch.equal(x, kept)
    assert not found.requires_grad
    low, high = SPEC.normalize(torch.zeros(1, 3, 1, 1)), SPEC.normalize(torch.ones(1, 3, 1, 1))
    assert bool((found >= low).all() and (found <= high).all())
    assert bool((found == low).any() and (found == high).any())


def test_jitter_and_flips_follow_the_generator(teacher: nn.Module) -> None:
    first, again, other = (
        invert(teacher, start(8), SPEC, generator(seed), Inversion(iterations=5)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_nothing_is_left_in_the_teacher_even_under_no_grad(teacher: nn.Module) -> None:
    teacher.train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    with torch.no_grad():
        found = invert(teacher, start(8), SPEC, generator(1), Inversion(iterations=3))
    assert not torch.equal(found, start(8))
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(module.training for module in teacher.modules())


def test_no_iteration_changes_nothing(teacher: nn.Module) -> None:
    assert torch.equal(invert(teacher, start(4), SPEC, generator(1), Inversion(iterations=0)), start(4))


def test_double_precision_teacher(teacher: nn.Module) -> None:
    found = invert(teacher.double(), start(4), SPEC, generator(1), Inversion(iterations=2))
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()


def test_targets_are_balanced_and_follow_the_answers() -> None:
    answer = torch.tensor([[9.0, 1.0, 0.0], [5.0, 4.0, 0.0], [8.0, 0.0, 1.0], [3.0, 0.0, 2.0]])
    # Samples 0 and 2 are surest of class 0 and fill it (two each); sample 1 then takes class 1 and sample 3 class 2.
    assert balanced_targets(answer).tolist() == [0, 1, 0, 2]
    many = balanced_targets(torch.randn(30, 10, generator=generator(0)) + torch.arange(10))
    assert many.bincount(minlength=10).tolist() == [3] * 10
    assert len(set(balanced_targets(torch.randn(4, 50, generator=generator(0))).tolist())) == 4


def test_total_variation_is_the_mean_step_down_and_across() -> None:
    x = torch.tensor([[[[0.0, 1.0], [3.0, 1.0]]]])
    assert_close(total_variation(x).item(), (1 + 2) / 2 + (3 + 0) / 2)


@pytest.mark.parametrize("changes", [{"iterations": -1}, {"jitter": -1}, {"lr": 0.0}])
def test_nonsense_is_refused(changes: dict) -> None:
    with pytest.raises(SourceError, match="give"):
        Inversion(**changes)


def disagreement(teacher: nn.Module, student: DynamicNet, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float(competition(student.all_exits(x)[:, :-1], teacher(x)).mean())


def test_rows_move_to_where_exits_disagree(teacher: nn.Module, student: DynamicNet) -> None:
    config = replace(STILL, iterations=30, ce=0.0, compete=5.0)
    alone = invert(teacher, start(), SPEC, generator(1), config)
    against = invert(teacher, start(), SPEC, generator(1), config, against=student)
    assert disagreement(teacher, student, against) > 1.2 * disagreement(teacher, student, alone)
    nothing = invert(teacher, start(), SPEC, generator(1), replace(config, compete=0.0), against=student)
    assert_close(nothing, alone, rtol=1e-3, atol=1e-3)


def test_the_loss_is_the_published_sum(teacher: nn.Module, student: DynamicNet, monkeypatch) -> None:
    weight = {"bn": 0.7, "ce": 0.3, "tv": 0.2, "l2": 0.1, "compete": 0.9}
    asked: list[float] = []
    descent = torch.autograd.grad

    def spy(loss: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        asked.append(loss.item())
        return descent(loss, x)

    monkeypatch.setattr(torch.autograd, "grad", spy)
    invert(teacher, start(), SPEC, generator(1), replace(STILL, iterations=1, **weight), against=student)
    with torch.no_grad():
        answer, exits = teacher(start()), student.all_exits(start())[:, :-1]
        distance = bn_distance(teacher, start()).item()
    target = balanced_targets(answer)
    numbers = [t.double().numpy() for t in (answer, target, start(), exits)]
    wanted = slow.inversion_loss(distance, numbers[0], target.numpy(), *numbers[2:], weight)
    assert asked == [pytest.approx(wanted, rel=1e-4)]


def test_the_student_stays_as_it_is(teacher: nn.Module, student: DynamicNet) -> None:
    student.train()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    invert(teacher, start(8), SPEC, generator(1), Inversion(iterations=2), against=student)
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())
    assert all(module.training for module in student.modules())
    assert all(p.grad is None for p in student.parameters())


def test_starts_other_than_fitted(teacher: nn.Module) -> None:
    still = Inversion(iterations=0)
    found = inversion(teacher, SPEC, 0, start="leaves", settings=still).sample(8, generator(5))
    assert_close(found, SPEC.normalize(leaves(8, SPEC.shape, generator(5))))
    noise = inversion(teacher, SPEC, 0, start="noise", settings=still).sample(64, generator(5))
    assert abs(float(noise.mean())) < 0.05
    with pytest.raises(SourceError, match="start='leafs'; give one of fitted, objects, leaves, noise"):
        inversion(teacher, SPEC, 0, start="leafs")  # type: ignore[arg-type]
    with pytest.raises(SourceError, match="no dynamic net"):
        inversion(teacher, SPEC, 0, start="leaves", against=teacher)  # type: ignore[arg-type]
