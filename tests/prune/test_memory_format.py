"""8 bits: a layer's output is laid out in memory as the float layer's is, so that a `view` behind it still works."""

from pathlib import Path

import pytest
import torch
from methods import SPEC
from torch import nn
from zoo import NETS

import dynext as dx
from dynext.net.int8 import Int8Layer, channels_last
from dynext.prune.quantization import value_range

FORMATS = [torch.contiguous_format, torch.channels_last]
CONVOLUTIONS = {
    "3x3": lambda: nn.Conv2d(6, 5, 3, padding=1),
    "strided": lambda: nn.Conv2d(6, 5, 3, stride=2),
    "1x1": lambda: nn.Conv2d(6, 5, 1),
    "1x1 strided": lambda: nn.Conv2d(6, 5, 1, stride=2),
    "depthwise": lambda: nn.Conv2d(6, 6, 3, groups=6),
    "to one place": lambda: nn.Conv2d(6, 5, 8),
    "to one channel": lambda: nn.Conv2d(6, 1, 3),
}


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def check_laid_out(layer: nn.Module, x: torch.Tensor) -> None:
    """The layer in 8 bits answers with the strides of the float one."""
    with torch.no_grad():
        scale, zero = value_range(x.flatten())
        wanted, given = layer(x), Int8Layer(layer, relu=False, scale=scale, zero=zero)(x)
    assert given.stride() == wanted.stride()
    torch.testing.assert_close(given, wanted, rtol=0, atol=0.05 * float(wanted.abs().max()))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_convolution_keeps_the_memory_format(kind: str, form: torch.memory_format, batch: int) -> None:
    with dx.seeded(0):
        layer = CONVOLUTIONS[kind]()
    x = drawn(batch, 6, 8, 8).contiguous(memory_format=form)
    check_laid_out(layer, x)
    last = Int8Layer(layer.to(memory_format=torch.channels_last), relu=True)(x)
    assert last.is_contiguous(memory_format=form)


@pytest.mark.parametrize("form", FORMATS)
def test_one_channel_and_odd_strides_are_told_as_torch_tells_them(form: torch.memory_format) -> None:
    with dx.seeded(0):
        gray, rgb = nn.Conv2d(1, 5, 3), nn.Conv2d(6, 5, 3)
    check_laid_out(gray, drawn(2, 1, 8, 8).to(memory_format=form))
    check_laid_out(rgb, drawn(2, 64, 6).transpose(1, 2).unflatten(2, (8, 8)))
    check_laid_out(rgb, drawn(2, 6, 16, 16).contiguous(memory_format=form)[:, :, ::2, 1::2])
    check_laid_out(rgb, drawn(2, 6, 8, 8).contiguous(memory_format=form).transpose(2, 3))
    check_laid_out(rgb, drawn(2, 12, 8, 8).contiguous(memory_format=form)[:, 6:])
    assert not channels_last(drawn(2, 6, 1, 1))


def test_a_linear_layer_gives_what_a_view_takes() -> None:
    with dx.seeded(0):
        linear = nn.Linear(9, 5)
    for x in (drawn(3, 9), drawn(3, 4, 9), drawn(3, 9, 4).transpose(1, 2), drawn(4, 3, 9).transpose(0, 1)):
        check_laid_out(linear, x)


@pytest.mark.parametrize("form", FORMATS)
def test_a_net_that_views_its_features_runs_in_8_bits(form: torch.memory_format, tmp_path: Path) -> None:
    model, example = NETS["lenet"]()
    net = dx.attach(dx.split(model, example), dx.heads.conv_heads(10, hidden=8))
    samples = dx.data.Samples(pixels=torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), spec=SPEC)
    coarse = dx.prune.quantize(net, samples, least_macs=0)
    dx.save(coarse, tmp_path / "net", policy=dx.Policy.never(coarse.num_exits), spec=SPEC)
    again = dx.load(tmp_path / "net", model=NETS["lenet"]()[0]).net
    x = samples.take(torch.arange(8)).x
    with torch.no_grad():
        wanted = net.all_exits(x)
        assert float((coarse.all_exits(x) - wanted).abs().max()) < 0.06 * float(wanted.abs().max())
        assert torch.equal(again.all_exits(x), coarse.all_exits(x))
    ran = again.run(x, dx.Policy.never(again.num_exits))
    torch.testing.assert_close(ran.logits, again.all_exits(x)[:, -1].detach())
