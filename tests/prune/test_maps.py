"""Attention maps are the papers', in every layout, and computing them changes nothing."""

import numpy as np
import pytest
import torch
from reference import maps as slow
from zoo import NETS

import dynext as dx
from dynext.losses.exits import attention_mimicry, attention_transfer
from dynext.prune.attention_maps import (
    activation_maps,
    as_map,
    attention_map,
    gradient_maps,
    normalized,
    of_reduced,
    resized,
    spatial_softmax,
)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_an_activation_map_is_the_formula(power: float) -> None:
    feature = drawn(3, 5, 4, 6)
    wanted = np.stack([slow.attention_map(sample, power) for sample in feature.numpy()])
    torch.testing.assert_close(attention_map(feature, power), torch.from_numpy(wanted))


def test_the_losses_are_the_formulas() -> None:
    student, teacher = drawn(3, 5, 4, 6), drawn(3, 2, 4, 6, seed=1)
    a, b = attention_map(student), attention_map(teacher)
    loss = attention_transfer(normalized(a), normalized(b))
    torch.testing.assert_close(float(loss), slow.transfer(student.numpy(), teacher.numpy()))
    loss = attention_mimicry(spatial_softmax(a), spatial_softmax(b))
    torch.testing.assert_close(float(loss), slow.mimicry(student.numpy(), teacher.numpy()))


@pytest.mark.parametrize("loss", [attention_transfer, attention_mimicry])
def test_no_gradient_reaches_the_map_that_teaches(loss) -> None:
    student, teacher = drawn(2, 6).requires_grad_(), drawn(2, 6, seed=1).requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_a_map_of_nothing_has_no_length() -> None:
    nothing = torch.zeros(2, 3, 3, requires_grad=True)
    normalized(nothing).sum().backward()
    assert torch.equal(normalized(nothing), torch.zeros(2, 9))
    assert torch.isfinite(nothing.grad).all()


def test_layouts_become_maps() -> None:
    assert as_map(torch.zeros(2, 6, 4, 4)).shape == (2, 6, 4, 4)
    assert as_map(torch.zeros(2, 4, 4, 6)).shape == (2, 6, 4, 4)
    assert as_map(torch.zeros(2, 5, 16)).shape == (2, 16, 5, 1)
    assert as_map(torch.zeros(2, 7)).shape == (2, 7, 1, 1)
    assert of_reduced(torch.zeros(2, 8, 8, 4)).shape == (
        2,
        8,
        8,
        4,
    )  # channels stand first there, whatever it looks like


def test_later_maps_are_brought_to_the_earlier_size() -> None:
    later = drawn(1, 3, 2, 3)
    wanted = slow.bilinear(later[0].numpy(), (4, 6))
    torch.testing.assert_close(resized(later, (4, 6))[0], torch.from_numpy(wanted))
    assert resized(later, (2, 3)) is later
    strip = resized(later, (5, 1))
    torch.testing.assert_close(strip, later.mean((2, 3), keepdim=True).expand(1, 3, 5, 1))


@pytest.mark.parametrize("name", ["residual", "vit_like", "convnext_like", "unet_like"])
def test_maps_of_a_net_leave_it_alone(name: str) -> None:
    model, example = NETS[name]()
    net = dx.attach(dx.split(model, example), dx.default_heads(10, hidden=8)).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x = torch.randn(3, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps = activation_maps(net, x)
    gradients = gradient_maps(net, x)
    assert len(maps) == len(gradients) == net.num_exits - 1
    assert [m.shape for m in maps] == [g.shape for g in gradients]
    assert all((m >= 0).all() for m in [*maps, *gradients])
    assert all(p.grad is None for p in net.parameters())
    assert all(m.training for m in net.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_gradient_map_is_the_slope_of_the_chosen_logit() -> None:
    model, example = NETS["plain"]()
    net = dx.attach(dx.split(model.double(), example.double(), after=["features.2"]), dx.heads.pooled_heads(10))
    x, y = drawn(2, 3, 8, 8), torch.tensor([3, 4])
    (gradient,) = gradient_maps(net, x, y)
    with torch.no_grad():
        (tap,), _ = net.taps(x)
        wanted = torch.zeros(tap.shape[1])
        for c in range(tap.shape[1]):
            moved = tap.clone()
            moved[0, c, 2, 5] += 1e-6
            wanted[c] = (net.staged.stages[1](moved)[0][0, 3] - net.staged.stages[1](tap)[0][0, 3]).abs() / 1e-6
    torch.testing.assert_close(gradient[0, 2, 5], wanted.mean().double(), rtol=1e-4, atol=1e-8)
