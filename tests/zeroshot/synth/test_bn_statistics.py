"""The distance to a teacher's stored statistics equals the written formula, and measuring leaves no trace."""

import pytest
import torch
from reference.bn_distance import bn_distance as slow
from torch import nn
from torch.testing import assert_close

from dynext.errors import SourceError
from dynext.modules.modes import batch_statistics
from dynext.seeding import generator
from dynext.zeroshot.synth.bn_statistics import answer_and_bn_distance, bn_distance, has_batch_norm, moments_of


def rows(n: int = 16) -> torch.Tensor:
    return torch.randn(n, 3, 8, 8, generator=generator(2)) * 1.7 + 0.3


def inputs_of(teacher: nn.Module, x: torch.Tensor) -> list[tuple[torch.Tensor, nn.BatchNorm2d]]:
    seen = []
    norms = [m for m in teacher.modules() if isinstance(m, nn.BatchNorm2d)]
    handles = [m.register_forward_pre_hook(lambda m, inputs: seen.append((inputs[0].detach(), m))) for m in norms]
    teacher(x)
    for handle in handles:
        handle.remove()
    return seen


def test_distance_is_the_written_formula(teacher: nn.Module) -> None:
    seen = inputs_of(teacher, rows())
    assert len(seen) == 7
    found = slow(
        [x.double().numpy() for x, _ in seen],
        [m.running_mean.double().numpy() for _, m in seen],
        [m.running_var.double().numpy() for _, m in seen],
        eps=1e-5,
    )
    assert_close(bn_distance(teacher, rows()).item(), found, rtol=1e-4, atol=1e-5)


def test_rows_a_net_was_trained_on_are_near() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3, momentum=1.0), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=1.0))
    net(rows())
    net.eval()
    assert bn_distance(net, rows()).item() < 1e-3
    assert bn_distance(net, 2 * rows()).item() > 0.5


def test_a_constant_channel_has_a_finite_slope(teacher: nn.Module) -> None:
    x = torch.zeros(4, 3, 8, 8, requires_grad=True)
    (slope,) = torch.autograd.grad(bn_distance(teacher, x), x)
    assert torch.isfinite(slope).all()
    assert float(slope.abs().sum()) > 0


@pytest.mark.parametrize("shape", [(7, 5, 4, 3), (9, 5), (6, 5, 7)])
def test_mean_variance_and_slope_of_channels(shape: tuple[int, ...]) -> None:
    x = (torch.randn(shape, generator=generator(0), dtype=torch.double) * 2 + 3).requires_grad_()
    var_c, mean_c = torch.var_mean(x, [axis for axis in range(x.ndim) if axis != 1], correction=0)
    assert_close(moments_of(x), (mean_c, var_c))
    assert torch.autograd.gradcheck(moments_of, (x,))


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-4), (torch.float16, 0.01), (torch.bfloat16, 0.05)])
def test_a_small_variance_beside_a_large_mean(dtype: torch.dtype, rtol: float) -> None:
    x = (torch.randn(64, 3, 16, 16, generator=generator(0)) + 5).to(dtype)
    var_c, mean_c = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    found_mean_c, found_var_c = moments_of(x)
    assert_close(found_mean_c.double(), mean_c, rtol=1e-5, atol=0)
    assert_close(found_var_c.double(), var_c, rtol=rtol, atol=0)


def test_measuring_changes_nothing(teacher: nn.Module) -> None:
    teacher.train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    with torch.no_grad():
        answer, distance = answer_and_bn_distance(teacher, rows())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(module.training for module in teacher.modules())
    assert_close(answer, teacher.eval()(rows()).detach())
    assert distance.item() == bn_distance(teacher, rows()).item()


def test_hooks_go_when_the_teacher_fails(teacher: nn.Module) -> None:
    with pytest.raises(RuntimeError):
        bn_distance(teacher, torch.zeros(2, 5, 8, 8))
    assert not any(module._forward_pre_hooks for module in teacher.modules())


def test_nets_without_statistics_say_so(layer_norm_teacher: nn.Module) -> None:
    assert not has_batch_norm(layer_norm_teacher)
    assert not has_batch_norm(nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(SourceError, match="has no BatchNorm with running statistics"):
        bn_distance(layer_norm_teacher, rows())


def test_batch_statistics_equal_a_training_pass(teacher: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    with batch_statistics(teacher):
        found = teacher(rows())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert_close(teacher(rows()), teacher.eval()(rows()))
    assert (found - teacher(rows())).abs().max() > 0.1
    assert_close(found, teacher.train()(rows()))


def test_batch_statistics_end_with_an_error(teacher: nn.Module) -> None:
    teacher.layer1.train()
    modes = [module.training for module in teacher.modules()]
    with pytest.raises(RuntimeError), batch_statistics(teacher):
        teacher(torch.zeros(2, 5, 8, 8))
    assert [module.training for module in teacher.modules()] == modes
    assert all(m.track_running_stats for m in teacher.modules() if isinstance(m, nn.BatchNorm2d))


def test_batch_statistics_keep_dropout_off_and_timm_activations() -> None:
    norm_act = pytest.importorskip("timm.layers").BatchNormAct2d(3, drop_layer=nn.Dropout)
    net = nn.Sequential(norm_act, nn.Dropout(0.9)).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with batch_statistics(net):
        found = net(rows())
    wanted = torch.relu(nn.functional.batch_norm(rows(), None, None, training=True))
    assert_close(found, wanted)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
