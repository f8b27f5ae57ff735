"""Gradient equilibrium: the rule is the paper's, and it is exactly the mean over the exits behind."""

import pytest
import torch
from reference import joint as slow
from zoo import NETS

from dynext.graph.split import split
from dynext.modules.exits import default_heads
from dynext.net.attach import attach
from dynext.net.dynamic_net import DynamicNet
from dynext.net.equilibrium import logits_in_equilibrium, rescale_gradient

CUTS = {"unet_like": ["stem", "down1", "middle"]}
"""Where skip connections cross."""


def dynamic(name: str) -> tuple[DynamicNet, torch.Tensor]:
    model, example = NETS[name]()
    net = attach(split(model, example, CUTS.get(name)), default_heads(10, hidden=8)).double()
    return net, torch.randn(6, *example.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def losses(logits_e: list[torch.Tensor]) -> list[torch.Tensor]:
    return [(e + 1) * logits.square().mean() for e, logits in enumerate(logits_e)]


@pytest.mark.parametrize("name", ["residual", "unet_like", "vit_like", "shared_weights"])
def test_the_trunk_gets_the_mean_over_the_exits_behind(name: str) -> None:
    net, x = dynamic(name)
    params = list(net.parameters())
    alone_e = [
        torch.autograd.grad(loss, params, retain_graph=True, materialize_grads=True)
        for loss in losses(list(net.all_exits(x).unbind(1)))
    ]
    logits_e, taps = logits_in_equilibrium(net, x)
    torch.testing.assert_close(torch.stack(logits_e, 1), net.all_exits(x), rtol=0, atol=0)
    assert len(taps) == len(net.staged.stages) - 1
    gradients = torch.autograd.grad(torch.stack(losses(logits_e)).sum(), params, materialize_grads=True)
    segments, balanced = segment_of(net), 0
    for p, gradient, *alone in zip(params, gradients, *alone_e, strict=True):
        whole = torch.stack(alone).sum(0)
        if id(p) in segments and len(segments[id(p)]) == 1:
            (segment,) = segments[id(p)]
            wanted = torch.from_numpy(slow.balanced([g.numpy() for g in alone], segment))
            torch.testing.assert_close(gradient, wanted)
            torch.testing.assert_close(gradient, torch.stack(alone[segment:]).mean(0))
            balanced += segment < net.num_exits - 1 and not torch.allclose(gradient, whole, rtol=1e-3, atol=0)
        elif id(p) not in segments:
            torch.testing.assert_close(gradient, whole)
    assert balanced > 0


def segment_of(net: DynamicNet) -> dict[int, set[int]]:
    """Between which exits the trunk's parameters are used."""
    places: dict[int, set[int]] = {}
    for s, stage in enumerate(net.staged.stages):
        segment = sum(exit.after < s for exit in net.exits)
        for p in stage.parameters():
            places.setdefault(id(p), set()).add(segment)
    return places


def test_without_balance_the_trunk_gets_the_sum() -> None:
    net, x = dynamic("residual")
    params = list(net.staged.parameters())
    wanted = torch.autograd.grad(torch.stack(losses(list(net.all_exits(x).unbind(1)))).sum(), params)
    gradients = torch.autograd.grad(torch.stack(losses(logits_in_equilibrium(net, x, balance=False)[0])).sum(), params)
    for ours, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_stages_without_an_exit_are_walked_through() -> None:
    model, example = NETS["residual"]()
    net = attach(split(model, example), default_heads(10, hidden=8), at=[1])
    logits_e, taps = logits_in_equilibrium(net, example)
    assert len(logits_e) == 2
    assert len(taps) == len(net.staged.stages) - 1


def test_rescaling_holds_in_a_second_backward_pass_and_under_torch_func() -> None:
    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(rescale_gradient(x, 0.25).pow(3).sum(), x, create_graph=True)
    assert torch.autograd.grad(gradient.sum(), x)[0].tolist() == [0.375, 0.75]
    gradient = torch.func.grad(lambda x: rescale_gradient(x, 0.25).pow(3).sum())(x.detach())
    assert gradient.tolist() == [0.75, 3.0]


def test_rescaling_changes_the_gradient_alone() -> None:
    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    y = rescale_gradient(x, 0.25)
    assert torch.equal(y, x)
    (y * torch.tensor([3.0, 5.0])).sum().backward()
    assert x.grad.tolist() == [0.75, 1.25]
