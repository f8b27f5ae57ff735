import pytest
import torch
from reference import losses as slow

from dynext.losses.exits import distillation, survivor_weights


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_distillation_is_the_formula(temperature: float) -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 7, 5, generator=draw, dtype=torch.float64)
    wanted = torch.tensor(slow.distillation(student.numpy(), teacher.numpy(), temperature), dtype=torch.float64)
    torch.testing.assert_close(distillation(student, teacher, temperature), wanted)
    weight = torch.rand(7, generator=draw, dtype=torch.float64)
    weighted = slow.distillation(student.numpy(), teacher.numpy(), temperature, weight.numpy())
    torch.testing.assert_close(float(distillation(student, teacher, temperature, weight)), weighted)
    torch.testing.assert_close(distillation(student, teacher, temperature, torch.ones(7).double()), wanted)


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    distillation(student, teacher, 4.0).backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_classes", [2, 5])
def test_survivors_weigh_what_thresholds_would_leave(strength: float, num_classes: int) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 6, num_classes, generator=draw, dtype=torch.float64)
    wanted = torch.from_numpy(slow.survivor_weights(logits.numpy(), strength))
    weight_eb = torch.stack(survivor_weights(list(logits), strength))
    torch.testing.assert_close(weight_eb, wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(weight_eb.mean(1), torch.ones(3).double())
    assert torch.equal(weight_eb[0], torch.ones(6).double())


def test_survivor_weights_pass_no_gradient_and_are_finite_where_all_samples_leave() -> None:
    logits = [torch.full((2, 3), 1e4).tril().requires_grad_() for _ in range(2)]
    sure = torch.eye(3)[:2] * 1e4
    weights = survivor_weights([sure, *logits], 1.0)
    assert not any(weight.requires_grad for weight in weights)
    assert weights[1].tolist() == [0.0, 0.0]
