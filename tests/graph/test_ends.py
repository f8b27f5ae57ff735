"""Automatic cuts stand at ends of blocks, never between a layer and its normalization or activation."""

import pytest
import torch
from torch import Tensor, fx, nn

from dynext.compat import declare_torchvision_operators
from dynext.graph.split import split

declare_torchvision_operators()


class PaddedConv(nn.Conv2d):
    """A convolution with a module in it, as ports of EfficientNet have: several alike stand side by side."""

    def __init__(self, *args: int, **kwargs: int) -> None:
        super().__init__(*args, **kwargs)
        self.static_padding = nn.ZeroPad2d(0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.static_padding(x))


class InvertedBlock(nn.Module):
    """Expand, depthwise, project; what is not residual could be cut anywhere inside."""

    def __init__(self, channels_in: int, channels_out: int, functional: bool) -> None:
        super().__init__()
        wide = 4 * channels_in
        self.expand, self.bn0 = PaddedConv(channels_in, wide, 1), nn.BatchNorm2d(wide)
        self.depthwise, self.bn1 = PaddedConv(wide, wide, 3, padding=1, groups=wide), nn.BatchNorm2d(wide)
        self.project, self.bn2 = PaddedConv(wide, channels_out, 1), nn.BatchNorm2d(channels_out)
        self.act = (lambda x: x * torch.sigmoid(x)) if functional else nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn0(self.expand(x)))
        return self.bn2(self.project(self.act(self.bn1(self.depthwise(x)))))


class Inverted(nn.Module):
    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(InvertedBlock(8, 8, functional) for _ in range(8)))
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        b = x.size(0)
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)).view(b, -1))


@pytest.mark.parametrize("functional", [False, True])
def test_blocks_of_padded_convolutions(functional):
    staged = split(Inverted(functional).eval(), torch.zeros(1, 3, 8, 8))
    assert len(staged.cuts) == 5
    assert all(cut.startswith("blocks.") and cut.count(".") == 1 for cut in staged.cuts)


class Bare(nn.Module):
    """No modules but layers, activations as functions: places are after the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(8))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(8))
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.relu(norm(conv(x)))
        return self.fc(x.mean((2, 3)))


def test_activations_belong_to_their_layers():
    staged = split(Bare().eval(), torch.zeros(1, 3, 8, 8))
    assert [cut.split("_")[0] for cut in staged.cuts] == ["relu"] * 5


TORCHVISION = ("mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "resnet18", "mnasnet0_5", "squeezenet1_1")
TIMM = ("test_efficientnet", "mobilenetv1_100", "test_convnext")


@pytest.mark.parametrize("name", TORCHVISION + TIMM)
def test_no_cut_stands_before_a_normalization_or_activation(name):
    if name in TORCHVISION:
        import torchvision

        model = torchvision.models.get_model(name, weights=None)
    else:
        model = pytest.importorskip("timm").create_model(name)
    staged = split(model.eval(), torch.zeros(1, 3, 64, 64))
    assert len(staged.cuts) >= 4
    for before, stage in zip(staged.stages[:-1], staged.stages[1:], strict=True):
        assert not completes(stage.body, ends_with_weights(before.body)), stage.name


def ends_with_weights(body: fx.GraphModule) -> bool:
    last = list(body.graph.nodes)[-1].all_input_nodes[0]
    return last.op == "call_module" and isinstance(body.get_submodule(last.target), nn.Conv2d | nn.Linear)


def completes(body: fx.GraphModule, of_weights: bool) -> bool:
    first = next(node for node in body.graph.nodes if node.op != "placeholder")
    kinds = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, *((nn.BatchNorm2d,) if of_weights else ()))
    return first.op == "call_module" and isinstance(body.get_submodule(first.target), kinds)
