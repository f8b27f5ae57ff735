"""Some models of ``benchmarks/coverage.py``, on smaller images."""

import pytest
import torch

from dynext.compat import declare_torchvision_operators
from dynext.graph.split import split

declare_torchvision_operators()

TORCHVISION = {
    "googlenet": {"init_weights": False},
    "mobilenet_v3_small": {},
    "shufflenet_v2_x0_5": {},
    "squeezenet1_1": {},
    "resnet18": {},
}
TIMM = ("test_vit", "test_convnext", "test_byobnet", "test_efficientnet")


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    import torchvision

    check_split(torchvision.models.get_model(name, weights=None, num_classes=10, **TORCHVISION[name]), 64)


@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    timm = pytest.importorskip("timm")
    check_split(timm.create_model(name, num_classes=10), 160)


@torch.no_grad()
def check_split(model: torch.nn.Module, side: int) -> None:
    x = torch.randn(2, 3, side, side)
    staged = split(model.train(), x)
    assert len(staged.cuts) >= 3
    torch.testing.assert_close(staged(x), model.eval()(x), rtol=1e-4, atol=1e-5)
