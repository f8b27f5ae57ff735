"""SqueezeNet and MobileNetV2 in CIFAR form: as many parameters and MACs as the papers' nets, on small images."""

import pytest
import torch
from torch import nn

import dynext as dx
from dynext.errors import ModelError
from dynext.graph.macs import count_macs
from dynext.models import MobileNetV2, SqueezeNet
from dynext.models.catalog import rebuild


def convolutions(net: nn.Module) -> int:
    return sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Conv2d))


def test_mobilenetv2_has_the_papers_parameters() -> None:
    from torchvision.models import mobilenet_v2

    assert sum(p.numel() for p in MobileNetV2().parameters()) == 2_236_682
    assert sum(p.numel() for p in mobilenet_v2(num_classes=10).parameters()) == 2_236_682


def test_squeezenet_has_the_papers_convolutions() -> None:
    from torchvision.models import squeezenet1_1

    assert convolutions(SqueezeNet()) == convolutions(squeezenet1_1(num_classes=10))


def test_squeezenet_macs_by_hand() -> None:
    fires = [(64, 16, 64, 32), (128, 16, 64, 32), (128, 32, 128, 16), (256, 32, 128, 16)]
    fires += [(256, 48, 192, 8), (384, 48, 192, 8), (384, 64, 256, 8), (512, 64, 256, 8)]
    macs = 3 * 64 * 9 * 32**2 + sum((c * s + 10 * s * e) * side**2 for c, s, e, side in fires) + 512 * 10 * 8**2
    assert count_macs(SqueezeNet().eval(), torch.zeros(2, 3, 32, 32)) == macs


@pytest.mark.parametrize("name", ["squeezenet", "mobilenetv2"])
def test_the_catalog_opens_them_and_split_cuts_them(name: str) -> None:
    opened = dx.open_model(
        f"cifar:{name}",
        arguments={"channels": 1, "width": 0.25, "num_classes": 7},
        shape=(1, 16, 16),
        mean=[0.5],
        std=[0.5],
    )
    assert opened.num_classes == 7
    staged = dx.split(opened.model, torch.zeros(1, 1, 16, 16))
    net = dx.attach(staged, dx.default_heads(7))
    assert net.num_exits >= 3
    x = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(x), opened.model(x))
    again = rebuild(opened.recipe)
    again.load_state_dict(opened.model.state_dict())
    torch.testing.assert_close(again(x), opened.model(x), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [SqueezeNet, MobileNetV2])
def test_sizes_that_make_no_net_are_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(ModelError, match="width 0"):
        kind(width=0)
