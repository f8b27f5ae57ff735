"""The last linear layer is found where it runs and decides, whatever the net calls it."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dynext.errors import SourceError
from dynext.seeding import generator, seeded
from dynext.types import InputSpec
from dynext.zeroshot.synth.last_layer import answer_and_feature, feature_layer, needed_layer, weights


class Squeezed(nn.Module):
    """A head that is defined first, and a bottleneck as wide as there are classes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(6, 4, 1)
        self.body = nn.Conv2d(3, 6, 3)
        self.squeeze = nn.Linear(6, 4)
        self.excite = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x).relu()
        gate = self.excite(self.squeeze(x.mean((2, 3))).relu()).sigmoid()
        return self.head(x * gate[:, :, None, None]).relu().mean((2, 3))


class Odd(nn.Module):
    """Four classes from a matrix of its own; the one linear layer with four outputs does not decide."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Linear(192, 4)
        self.matrix = nn.Parameter(torch.randn(4, 4, generator=generator(0)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.squeeze(x.flatten(1)).sigmoid() @ self.matrix


def rows(spec: InputSpec) -> torch.Tensor:
    return torch.randn(5, *spec.shape, generator=generator(1))


def test_resnet_and_layer_norm(teacher: nn.Module, layer_norm_teacher: nn.Module, spec: InputSpec) -> None:
    assert needed_layer(teacher, spec) is teacher.linear
    assert needed_layer(layer_norm_teacher, spec) is layer_norm_teacher[-1]


def test_a_one_by_one_convolution_defined_first(spec: InputSpec) -> None:
    with seeded(0):
        net = Squeezed().eval()
    found = needed_layer(net, spec)
    assert found is net.head
    assert weights(found).shape == (4, 6)
    assert not weights(found).requires_grad


def test_of_two_layers_that_decide_the_later_one(spec: InputSpec) -> None:
    with seeded(0):
        net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Linear(4, 4)).eval()
    with torch.no_grad():
        net[2].weight.copy_(torch.eye(4))
    assert needed_layer(net, spec) is net[2]


def test_tokens(spec: InputSpec) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.flatten(1, 2)).mean(1)

    net = Tokens().eval()
    answer, feature = answer_and_feature(net, needed_layer(net, spec), rows(spec))
    assert answer.shape == (5, 3)
    assert_close(feature, rows(spec).flatten(1, 2).mean(1))


def test_features_are_what_the_layer_sees(teacher: nn.Module, spec: InputSpec) -> None:
    answer, feature = answer_and_feature(teacher, teacher.linear, rows(spec))
    assert_close(teacher.linear(feature), answer)
    with seeded(0):
        net = Squeezed().eval()
    _, feature = answer_and_feature(net, net.head, rows(spec))
    assert feature.shape == (5, 6)


def test_a_dead_class_does_not_hide_the_layer(teacher: nn.Module, spec: InputSpec) -> None:
    with torch.no_grad():
        teacher.linear.weight[0] = 0
        teacher.linear.bias[0] = -1e4
    assert needed_layer(teacher, spec) is teacher.linear


def test_a_net_without_one_says_so(spec: InputSpec) -> None:
    with pytest.raises(SourceError, match="Odd has no last linear layer .* whose 4 outputs decide"):
        needed_layer(Odd().eval(), spec)
    with pytest.raises(SourceError, match=r"answers \[2, 1\] for 2 samples"):
        needed_layer(nn.Sequential(nn.Flatten(), nn.Linear(192, 1)).eval(), spec)
    assert feature_layer(Odd().eval(), spec) is None
    answer, feature = answer_and_feature(Odd().eval(), None, rows(spec))
    assert feature is answer


def test_finding_leaves_no_trace(teacher: nn.Module, spec: InputSpec) -> None:
    teacher.train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    needed_layer(teacher, spec)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(module.training for module in teacher.modules())
    assert not any(module._forward_hooks for module in teacher.modules())
