"""MACs against numbers counted by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dynext.graph.macs import count_macs, param_bytes

T, D, HEADS = 5, 8, 2
PROJECTIONS = T * D * 4 * D
ATTENTION = 2 * T * T * D
MLP = 2 * T * D * 16


def attention(x: torch.Tensor) -> torch.Tensor:
    q = x.view(len(x), T, HEADS, D // HEADS).transpose(1, 2)
    return F.scaled_dot_product_attention(q, q, q)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize(
    ("module", "shape", "macs"),
    [
        (nn.Linear(8, 4), (8,), 32),
        (nn.Conv2d(3, 6, 3, 2, 1), (3, 8, 8), 4 * 4 * 6 * 3 * 9),
        (nn.Conv2d(6, 6, 3, 1, 1, groups=3), (6, 8, 8), 8 * 8 * 6 * 2 * 9),
        (nn.BatchNorm2d(3).eval(), (3, 8, 8), 0),
        (attention, (T, D), ATTENTION),
    ],
)
def test_macs_per_sample(module, shape, macs, count):
    assert count_macs(module, torch.randn(count, *shape)) == macs


def test_fused_attention_is_counted_and_left_switched_on():
    layer = nn.TransformerEncoderLayer(D, HEADS, 16, batch_first=True).eval()
    assert torch.backends.mha.get_fastpath_enabled()
    assert count_macs(layer, torch.randn(2, T, D)) == PROJECTIONS + ATTENTION + MLP
    assert torch.backends.mha.get_fastpath_enabled()


def test_counting_that_fails_leaves_the_switch_alone():
    with pytest.raises(RuntimeError):
        count_macs(nn.Linear(8, 4), torch.zeros(2, 7))
    assert torch.backends.mha.get_fastpath_enabled()


def test_views_of_parameters_are_counted():
    class Queries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.project = nn.Parameter(torch.ones(1, 8)), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.project(self.query.expand(len(x), 8)) + x

    assert count_macs(Queries(), torch.zeros(3, 4)) == 32


def test_bytes():
    norm = nn.BatchNorm2d(4)  # four vectors of 4 floats and a counter
    assert param_bytes(norm) == 4 * 4 * 4 + 8
    assert param_bytes(nn.Sequential(norm, norm)) == param_bytes(norm)
