"""Class activation maps: the known one of a linear exit, the same from anywhere, and nothing left behind."""

import pytest
import torch
from zoo import NETS

import dynext as dx
from dynext.errors import PolicyError
from dynext.net.cam import class_activation
from dynext.net.cascade import cascade


def dynamic(name: str = "unet_like") -> tuple[dx.DynamicNet, torch.Tensor]:
    model, example = NETS[name]()
    net = dx.attach(dx.split(model, example, after=[0.3, 0.6]), dx.heads.strided_heads(10, convs=0))
    return net, torch.randn(4, *example.shape[1:], generator=torch.Generator().manual_seed(0))


def test_of_an_exit_that_is_linear_in_averages_it_is_the_weighted_sum_of_channels() -> None:
    net, x = dynamic()
    target_b = torch.tensor([3, 0, 9, 3])
    taps, _ = net.taps(x)
    for e in (0, 1):
        weight_bc = net.exits[e].classifier.weight[target_b]
        places = taps[e].shape[2] * taps[e].shape[3]
        expected = torch.einsum("bc,bchw->bhw", weight_bc, taps[e]).relu() / places
        torch.testing.assert_close(class_activation(net, x, e, target_b=target_b), expected)


def test_the_last_exit_is_seen_from_the_last_cut_and_answers_are_the_default() -> None:
    net, x = dynamic()
    activation = class_activation(net, x, -1)
    answer_b = net(x).argmax(1)
    torch.testing.assert_close(activation, class_activation(net, x, 2, target_b=answer_b))
    last = net.staged.stages[-2]
    assert activation.shape == (4, *last.live_shapes[last.tap][1:])
    assert (activation >= 0).all()
    assert activation.sum() > 0
    assert not activation.requires_grad


def test_the_net_is_left_as_it_was() -> None:
    net, x = dynamic()
    net.exits[0].train()
    flags = [m.training for m in net.modules()]
    class_activation(net, x, 0)
    assert flags == [m.training for m in net.modules()]
    assert all(p.grad is None for p in net.parameters())


def test_what_has_no_map_is_refused() -> None:
    net, x = dynamic()
    with pytest.raises(PolicyError, match="exit 3 of a net with 3; give 0 to 2, or -1"):
        class_activation(net, x, 3)
    with pytest.raises(PolicyError, match=r"taps a tensor of shape \(10,\); a map has"):
        class_activation(cascade(net, "boost"), x, 0)
