"""Nets whose samples depend on each other are refused by name; nets whose samples do not are left alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import NETS, build
from zoo.refused import SamplesMeet

from dynext.errors import SplitError
from dynext.graph.split import split


class AlwaysTrains(nn.Module):
    """Keeps its BatchNorm in training mode whatever it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def train(self, mode: bool = True) -> "AlwaysTrains":
        super().train(mode)
        self.norm.train()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class AmongSamples(nn.Module):
    """Attention that takes samples for tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None]
        return (x + self.attention(x, x, x)[0])[:, 0]


MEETING = {
    "mean": (lambda: lambda x: x - x.mean(0), "'sub'.*`.*mean.*test_independence.py, line"),
    "little": (lambda: lambda x: x - 0.05 * x.mean(0), "'sub'"),
    "largest": (lambda: lambda x: x / x.abs().max(), "'truediv'"),
    "softmax": (lambda: lambda x: x.softmax(0), "'softmax'"),
    "sorted": (lambda: lambda x: x.sort(0)[0], "'sort'"),
    "summed up": (lambda: lambda x: x.cumsum(0), "'cumsum'"),
    "its neighbor": (lambda: lambda x: x + 0.3 * x.roll(1, 0), "'roll'"),
    "likeness": (lambda: lambda x: (x @ x.t()).softmax(-1) @ x, "'matmul"),
    "functional": (lambda: lambda x: F.batch_norm(x, None, None, training=True), "'batch_norm'"),
    "no statistics": (lambda: nn.BatchNorm1d(8, track_running_stats=False), r"meet \(BatchNorm1d\)"),
    "in training": (AlwaysTrains, r"meet.norm \(BatchNorm1d\)"),
    "attention": (AmongSamples, r"meet.attention \(MultiheadAttention\)"),
    "count": (lambda: lambda x: x / len(x), "otherwise alone.*'truediv'"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", MEETING)
def test_the_first_place_is_named(name, dtype):
    meet, says = MEETING[name]
    model, x = build(lambda: SamplesMeet(meet()))
    with pytest.raises(SplitError, match=says):
        split(model.to(dtype), torch.zeros_like(x[:1]).to(dtype))


def test_statistics_stay_as_they_are():
    model, x = build(lambda: SamplesMeet(AlwaysTrains()))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(SplitError):
        split(model, x)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


APART = {
    "tokens first": lambda x: x.view(-1, 2, 4).transpose(0, 1).softmax(0).transpose(0, 1).reshape(-1, 8),
    "random": lambda x: F.dropout(x, 0.5),
    "rounded": lambda x: (x * 16).round() / 16,
    "instance": lambda x: F.instance_norm(x[:, None])[:, 0],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", APART)
def test_samples_apart_are_split(name, dtype):
    model, x = build(lambda: SamplesMeet(APART[name]))
    assert split(model.to(dtype), x.to(dtype)).cuts


class DynamicQuant(nn.Module):
    """Rounds to 8 bits by the largest number of the batch: noise that int8 kernels have."""

    def forward(self, x: Tensor) -> Tensor:
        scale = x.abs().max() / 127
        return (x / scale).round() * scale


def test_scales_of_quantization_are_noise():
    assert split(*build(lambda: SamplesMeet(DynamicQuant()))).cuts


@pytest.mark.parametrize("name", NETS)
def test_nets_of_the_zoo_have_nothing_to_note(name):
    assert split(*NETS[name]()).notes == ()
