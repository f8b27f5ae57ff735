import pytest
import torch
from reference.losses import distillation as slow

from dynext.losses import distillation


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_distillation_is_the_formula(temperature: float) -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 7, 5, generator=draw, dtype=torch.float64)
    wanted = torch.tensor(slow(student.numpy(), teacher.numpy(), temperature), dtype=torch.float64)
    torch.testing.assert_close(distillation(student, teacher, temperature), wanted)


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    distillation(student, teacher, 4.0).backward()
    assert teacher.grad is None
    assert student.grad is not None
