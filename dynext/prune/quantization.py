"""Stages and exits in 8 bits, calibrated on whatever samples there are, synthesized ones too.

Shapes: b samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from dynext.data.indexing import check_samples
from dynext.errors import FitError
from dynext.graph.macs import layer_macs
from dynext.modules.modes import evaluating, statistics
from dynext.net.dynamic_net import DynamicNet
from dynext.net.int8 import LEVELS, Chain, chains, to_int8
from dynext.seeding import generator
from dynext.types import BatchNormMode, Source

VALUES = 1 << 12
"""How many of a layer's inputs are kept of each batch, to find their range by."""

CLIPS = tuple(1 - 0.02 * step for step in range(26))
"""Shares of the largest input that are tried as the end of the range."""


@torch.no_grad()
def quantize(
    net: DynamicNet,
    source: Source,
    *,
    least_macs: int = 20_000,
    bn: BatchNormMode | None = None,
    batches: int = 16,
    seed: int = 0,
) -> DynamicNet:
    """A copy of ``net`` in 8 bits: weights of convolutions and linear layers, and what goes into them.

    BatchNorm and ReLU behind a layer are folded in. The range of a layer's input is the one of `CLIPS` that rounds what
    was seen on ``source`` with the least squared error. On a trained net one layer's output is off by about a hundredth
    of its largest value. Tables, temperatures and thresholds are the float net's: collect and choose again. MACs stay
    what they are, since a multiplication in 8 bits is one; what they cost is for `dynext.measure` to say.

    Args:
        source: samples to calibrate on; labels are not looked at.
        least_macs: layers with fewer MACs a sample stay float, and so do depthwise and other grouped convolutions:
            rounding their input costs more than the kernel saves. A sample alone is run faster by layers of one or two
            million MACs and more only, since each call in 8 bits takes some 50 us before it sums: raise this for nets
            of thin layers that run sample by sample. Batches gain from smaller ones.
        bn: which statistics the stages use meanwhile; the source's own choice by default.
        batches: how many batches of the source are looked at.

    Raises:
        FitError: in 8 bits already, no batch to look at, or no layer that is large enough. SourceError: no samples, or
            of another shape.

    Source: Jacob et al., CVPR 2018, arXiv:1712.05877 (affine inputs, symmetric weights, folding); Nagel et al. 2021,
    arXiv:2106.08295, section 3.1 (ranges by squared error). The kernels are oneDNN's, through torch.
    """
    if net.int8 is not None:
        raise FitError("the net is in 8 bits already; give the float one")
    if batches < 1:
        raise FitError(f"batches={batches}; give how many to find ranges on, 1 or more")
    check_samples(source, net.staged.input_shape)
    names = _chosen(net, least_macs)
    if not names:
        raise FitError(f"no layer spends {least_macs:,} MACs a sample; give a smaller least_macs")
    seen = _observed(net, source, names, bn or source.bn, batches, seed)
    return to_int8(net, {"layers": {name: list(value_range(torch.cat(values))) for name, values in seen.items()}})


def value_range(value: Tensor) -> tuple[float, int]:
    """Scale and zero of a range that rounds these values to 8 bits with the least squared error.

    >>> value_range(torch.tensor([0.0, 0.5, 1.0]))
    (0.00392156862745098, 0)
    """
    low, high = min(float(value.min()), 0.0), max(float(value.max()), 0.0)
    if high == low:
        return 1.0, 0
    tried = [_affine(low * clip, high * clip) for clip in CLIPS]
    return min(tried, key=lambda one: float((rounded(value, *one) - value).square().sum()))


def rounded(value: Tensor, scale: float, zero: int) -> Tensor:
    """What is left of values in 8 bits."""
    return ((value / scale).round() + zero).clamp(0, LEVELS).sub(zero) * scale


def _affine(low: float, high: float) -> tuple[float, int]:
    scale = (high - low) / LEVELS
    return scale, round(-low / scale)


def _chosen(net: DynamicNet, least: int) -> list[str]:
    like = next(net.parameters())
    with evaluating(net):
        macs = layer_macs(net, net.all_exits, like.new_zeros(2, *net.staged.input_shape))
    found = {name: chain for name, chain in chains(net) if macs.get(name, 0) >= least and not _grouped(chain)}
    return list(found)


def _grouped(chain: Chain) -> bool:
    return isinstance(chain.layer, nn.Conv2d) and chain.layer.groups > 1


def _observed(
    net: DynamicNet, source: Source, names: list[str], bn: BatchNormMode, batches: int, seed: int
) -> dict[str, list[Tensor]]:
    """A sample of what goes into each layer."""
    like, draw = next(net.parameters()), generator(seed)
    with evaluating(net), statistics(net.staged, bn), _listening(net, names, draw) as seen:
        for index, batch in enumerate(source):
            if index == batches:
                break
            net.all_exits(batch.x.to(like))
    return seen


@contextmanager
def _listening(net: DynamicNet, names: list[str], draw: torch.Generator) -> Iterator[dict[str, list[Tensor]]]:
    seen: dict[str, list[Tensor]] = {}
    modules = dict(net.named_modules())

    def keep(name: str, x: Tensor) -> None:
        flat = x.detach().flatten().float().cpu()
        index = torch.randint(len(flat), (min(VALUES, len(flat)),), generator=draw)
        seen.setdefault(name, []).append(torch.cat([flat[index], flat.min()[None], flat.max()[None]]))

    with ExitStack() as open_hooks:
        for name in names:
            handle = modules[name].register_forward_pre_hook(lambda _, inputs, name=name: keep(name, inputs[0]))
            open_hooks.callback(handle.remove)
        yield seen
