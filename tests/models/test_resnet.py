"""The CIFAR ResNets: the paper's figures, and the public checkpoints' names."""

import pytest
import torch
from torch.testing import assert_close

from dynext.errors import ModelError
from dynext.models.resnet import PadShortcut, ResNet


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_parameters_are_those_of_the_paper(depth: int, millions: float) -> None:
    counted = sum(p.numel() for p in ResNet(depth).parameters()) / 1e6
    assert counted == pytest.approx(millions, abs=0.05 if depth == 110 else 0.01)  # He et al. 2016, table 6


def test_depth_counts_the_layers_with_weights() -> None:
    layers = [m for m in ResNet(32).modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == 32


def test_option_b_projects_and_option_a_has_no_shortcut_parameters() -> None:
    assert not [k for k in ResNet(8, option="A").state_dict() if "shortcut" in k]
    assert [k for k in ResNet(8, option="B").state_dict() if "shortcut.0.weight" in k] == [
        "layer2.0.shortcut.0.weight",
        "layer3.0.shortcut.0.weight",
    ]


def test_padding_shortcut_keeps_every_second_pixel_and_adds_zeros_around() -> None:
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    out = PadShortcut(2, 4)(x)
    assert out.shape == (1, 4, 2, 2)
    assert_close(out[:, 1:3], x[:, :, ::2, ::2])
    assert not out[:, [0, 3]].any()


def test_width_channels_and_classes_reach_the_shapes() -> None:
    net = ResNet(8, num_classes=7, width=4, channels=1).eval()
    assert net.conv1.weight.shape == (4, 1, 3, 3)
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 7)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ModelError, match=r"depth 21 is not 6n\+2"):
        ResNet(21)
    with pytest.raises(ModelError, match="shortcut option 'C'"):
        ResNet(8, option="C")
