"""Stages and exits in 8 bits, calibrated on real or synthesized samples.

Shapes: b samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice

import torch
from torch import Tensor, nn

from dynext.data.given import takes_data
from dynext.data.indexing import check_samples
from dynext.errors import FitError
from dynext.graph.macs import layer_macs
from dynext.modules.modes import evaluating, statistics
from dynext.net.dynamic_net import DynamicNet
from dynext.net.int8 import LEVELS, Chain, chains, to_int8
from dynext.seeding import generator
from dynext.types import BatchNormMode, Data, InputSpec, Source
from dynext.usual_modes import in_usual_modes

VALUES = 1 << 12
"""How many of a layer's input values are drawn from each batch, to choose their range by."""

CLIPS = tuple(1 - 0.02 * step for step in range(26))
"""Shares of the largest input that are tried as the end of the range."""


@in_usual_modes
@takes_data(unlabelled=("source",))
@torch.no_grad()
def quantize(
    net: DynamicNet,
    source: Data,
    *,
    least_macs: int = 20_000,
    bn: BatchNormMode | None = None,
    batches: int = 16,
    seed: int = 0,
    spec: InputSpec | None = None,
) -> DynamicNet:
    """A copy of ``net`` in 8 bits: the weights and the inputs of convolutions and linear layers.

    BatchNorm and ReLU after a layer are folded in. The range of a layer's input is the one of `CLIPS` that rounds the
    values seen on ``source`` with the least squared error. On a trained net one layer's output is off by about a
    hundredth of its largest value. Tables, temperatures and thresholds of the float net no longer hold: collect and
    choose again. MACs stay the same, since a multiplication in 8 bits is one too; `dynext.measure` says how long they
    take.

    Args:
        source: samples to calibrate on; labels are ignored.
        least_macs: layers with fewer MACs a sample stay float, as do depthwise and other grouped convolutions: rounding
            their input costs more than the kernel saves. Each call in 8 bits takes some 50 us before it computes, so
            that a single sample gains only from layers of one or two million MACs and more, while batches gain from
            smaller ones: raise this for nets of thin layers that run sample by sample.
        bn: which BatchNorm statistics the stages use meanwhile; the source's own choice by default.
        batches: how many batches of the source are used, from its first on.

    Raises:
        FitError: in 8 bits already, no batch to use, or no layer that is large enough. SourceError: no samples, or
            of another shape.

    Source: Jacob et al., CVPR 2018, arXiv:1712.05877 (affine inputs, symmetric weights, folding); Nagel et al. 2021,
    arXiv:2106.08295, section 3.1 (ranges by squared error). The kernels are oneDNN's, through torch.
    """
    if net.int8 is not None:
        raise FitError("the net is in 8 bits already; give the float one")
    if batches < 1:
        raise FitError(f"batches={batches}; give how many to find ranges on, 1 or more")
    check_samples(source, net.staged.input_shape)
    names = _large_layers(net, least_macs)
    if not names:
        raise FitError(f"no layer spends {least_macs:,} MACs a sample; give a smaller least_macs")
    inputs = _sampled_inputs(net, source, names, bn or source.bn, batches, seed)
    return to_int8(net, {"layers": {name: list(value_range(torch.cat(values))) for name, values in inputs.items()}})


def value_range(value: Tensor) -> tuple[float, int]:
    """Scale and zero point that round these values to 8 bits with the least squared error.

    >>> value_range(torch.tensor([0.0, 0.5, 1.0]))
    (0.00392156862745098, 0)
    """
    low, high = min(float(value.min()), 0.0), max(float(value.max()), 0.0)
    if high == low:
        return 1.0, 0
    ranges = [_affine(low * clip, high * clip) for clip in CLIPS]
    return min(ranges, key=lambda scale_zero: float((rounded(value, *scale_zero) - value).square().sum()))


def rounded(value: Tensor, scale: float, zero: int) -> Tensor:
    """The values that 8 bits represent these by."""
    return ((value / scale).round() + zero).clamp(0, LEVELS).sub(zero) * scale


def _affine(low: float, high: float) -> tuple[float, int]:
    scale = (high - low) / LEVELS
    return scale, round(-low / scale)


def _large_layers(net: DynamicNet, least_macs: int) -> list[str]:
    """Names of the layers that are put into 8 bits."""
    like = next(net.parameters())
    with evaluating(net):
        macs = layer_macs(net, net.all_exits, like.new_zeros(2, *net.staged.input_shape))
    large = {name: chain for name, chain in chains(net) if macs.get(name, 0) >= least_macs and not _grouped(chain)}
    return list(large)


def _grouped(chain: Chain) -> bool:
    return isinstance(chain.layer, nn.Conv2d) and chain.layer.groups > 1


def _sampled_inputs(
    net: DynamicNet, source: Source, names: list[str], bn: BatchNormMode, batches: int, seed: int
) -> dict[str, list[Tensor]]:
    """Some of each layer's input values, one tensor a batch, the smallest and the largest among them."""
    like, draw = next(net.parameters()), generator(seed)
    with evaluating(net), statistics(net.staged, bn), _recording(net, names, draw) as inputs:
        for batch in islice(source, batches):
            net.all_exits(batch.x.to(like))
    return inputs


@contextmanager
def _recording(net: DynamicNet, names: list[str], draw: torch.Generator) -> Iterator[dict[str, list[Tensor]]]:
    inputs: dict[str, list[Tensor]] = {}
    modules = dict(net.named_modules())

    def record(name: str, x: Tensor) -> None:
        flat = x.detach().flatten().float().cpu()
        index = torch.randint(len(flat), (min(VALUES, len(flat)),), generator=draw)
        inputs.setdefault(name, []).append(torch.cat([flat[index], flat.min()[None], flat.max()[None]]))

    with ExitStack() as open_hooks:
        for name in names:
            handle = modules[name].register_forward_pre_hook(lambda _, given, name=name: record(name, given[0]))
            open_hooks.callback(handle.remove)
        yield inputs
