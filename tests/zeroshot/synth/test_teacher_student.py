"""Teacher and student look at the same samples; a student that is the teacher is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dynext.errors import SourceError
from dynext.graph.split import split
from dynext.models import ResNet
from dynext.modules.exits import default_heads
from dynext.net.attach import attach
from dynext.net.dynamic_net import DynamicNet
from dynext.seeding import generator
from dynext.types import InputSpec
from dynext.zeroshot.synth.bn_statistics import bn_distance
from dynext.zeroshot.synth.teacher_student import TeacherAndStudent, check_student
from dynext.zeroshot.synth.terms import adversarial, competition


def rows(spec: InputSpec, n: int = 6) -> torch.Tensor:
    return torch.randn(n, *spec.shape, generator=generator(3))


class Copycat(nn.Module):
    """An exit that asks the teacher."""

    after, name = 0, "layer1"

    def __init__(self, teacher: nn.Module, x: torch.Tensor) -> None:
        super().__init__()
        self.teacher, self.x = teacher, x

    def forward(self, tap: torch.Tensor) -> torch.Tensor:
        return self.teacher(self.x)


def test_one_trunk_is_run_once_and_finds_the_same(teacher: nn.Module, student: DynamicNet, spec: InputSpec) -> None:
    x = rows(spec)
    calls: list[nn.Module] = []
    handle = teacher.conv1.register_forward_hook(lambda module, *_: calls.append(module))
    pair = TeacherAndStudent(teacher, student)
    calls.clear()
    found = pair(x)
    assert not calls, "the teacher was run beside its own trunk"
    handle.remove()
    assert_close(found.answer_bk, teacher(x), rtol=1e-4, atol=1e-5)
    assert_close(found.distance, bn_distance(teacher, x), rtol=1e-4, atol=1e-5)
    assert_close(pair.exits(found.taps), student.all_exits(x)[:, :-1])


def test_a_trunk_that_went_its_own_way_is_run_beside_the_teacher(
    teacher: nn.Module, student: DynamicNet, spec: InputSpec
) -> None:
    x = rows(spec)
    with torch.no_grad():
        next(student.staged.parameters()).mul_(1.5)
    pair = TeacherAndStudent(teacher, student)
    found = pair(x)
    assert_close(found.answer_bk, teacher(x))
    assert_close(found.distance, bn_distance(teacher, x))
    assert_close(pair.exits(found.taps), student.all_exits(x)[:, :-1])


def test_without_batch_norm_or_student(layer_norm_teacher: nn.Module, teacher: nn.Module, spec: InputSpec) -> None:
    found = TeacherAndStudent(layer_norm_teacher)(rows(spec))
    assert found.distance is None
    assert found.taps == []
    with pytest.raises(SourceError, match="give against="):
        TeacherAndStudent(teacher).exits([])


def test_looking_leaves_no_trace(teacher: nn.Module, student: DynamicNet, spec: InputSpec) -> None:
    student.exits[0].train()
    modes = [module.training for module in student.modules()]
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    pair = TeacherAndStudent(teacher, student)
    pair.exits(pair(rows(spec)).taps)
    assert [module.training for module in student.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())
    assert not any(module._forward_pre_hooks for module in student.modules())


def test_a_real_student_passes_and_its_terms_are_not_zero(
    teacher: nn.Module, student: DynamicNet, spec: InputSpec
) -> None:
    check_student(teacher, student, spec)
    pair = TeacherAndStudent(teacher, student)
    with torch.no_grad():
        found = pair(rows(spec, 32))
        exits = pair.exits(found.taps)
    assert float(competition(exits, found.answer_bk).mean()) > 1e-2
    assert float(adversarial(exits, found.answer_bk)) > 1e-3


def test_a_student_that_is_the_teacher_is_refused(teacher: nn.Module, student: DynamicNet, spec: InputSpec) -> None:
    x = torch.randn(4, *spec.shape, generator=generator(0))
    copycat = DynamicNet(copy.deepcopy(student.staged), [Copycat(teacher, x)]).eval()
    answer = teacher(x).detach()
    assert float(competition(answer[:, None], answer).abs().max()) < 1e-6, "the term would always be 0"
    with pytest.raises(SourceError, match="answers just what the teacher answers"):
        check_student(teacher, copycat, spec)


def test_what_cannot_be_a_student_is_refused(teacher: nn.Module, student: DynamicNet, spec: InputSpec) -> None:
    with pytest.raises(SourceError, match="against=ResNet is no dynamic net"):
        check_student(teacher, teacher, spec)  # type: ignore[arg-type]
    with pytest.raises(SourceError, match="has no early exit"):
        check_student(teacher, DynamicNet(student.staged, []), spec)
    with pytest.raises(SourceError, match="expects samples"):
        check_student(teacher, student, InputSpec(shape=(3, 9, 9), mean=spec.mean, std=spec.std))
    other = ResNet(8, num_classes=5, width=4).eval()
    fives = attach(split(other, torch.zeros(1, 3, 8, 8), ["layer1"]), default_heads(5))
    with pytest.raises(SourceError, match="knows 5 classes, the teacher 4"):
        check_student(teacher, fives, spec)
