"""What a piece of a net costs: multiply-accumulates per sample, bytes of its tensors.

MACs are those of matrix products and convolutions (linear, conv, bmm, attention), as torch counts them;
elementwise work and normalization are free, as in the papers' tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

FLOPS_PER_MAC = 2


class MacCounter:
    """Running count of the MACs of everything executed while it is open; see `counting`."""

    def __init__(self, flops: FlopCounterMode) -> None:
        self._flops = flops

    def total(self) -> int:
        """MACs of all samples together since the counter was opened."""
        return self._flops.get_total_flops() // FLOPS_PER_MAC


class _Everything(nullcontext[None]):
    """Stands in for torch's module tracker, whose hooks trip over views of parameters; only the total is wanted."""

    parents = ("Global",)


@contextmanager
def counting() -> Iterator[MacCounter]:
    """Count MACs in this block, attention included.

    Two things would otherwise count as free: the CPU kernel of ``scaled_dot_product_attention``, which torch's
    registry does not list, and the fused path of ``nn.MultiheadAttention``, which hides its matrix products.
    """
    flops = FlopCounterMode(display=False, custom_mapping=_unlisted())
    flops.mod_tracker = _Everything()  # type: ignore[assignment]
    with _without_fused_attention(), flops:
        yield MacCounter(flops)


_switch = Lock()
_counting: list[bool] = []
"""One entry a count that is going on in some thread: how the switch stood before."""


@contextmanager
def _without_fused_attention() -> Iterator[None]:
    """The switch is the whole process's: the first to count turns it, the last turns it back."""
    with _switch:
        _counting.append(torch.backends.mha.get_fastpath_enabled() if not _counting else _counting[0])
        torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        with _switch:
            before = _counting.pop()
            if not _counting:
                torch.backends.mha.set_fastpath_enabled(before)


def count_macs(function: Callable[..., Any], *inputs: Tensor) -> int:
    """MACs per sample of ``function(*inputs)``; the first input's first dimension counts the samples.

    >>> count_macs(nn.Linear(8, 4), torch.zeros(2, 8))
    32
    """
    with torch.no_grad(), counting() as macs:
        function(*inputs)
    return macs.total() // len(inputs[0])


@torch.no_grad()
def layer_macs(net: nn.Module, function: Callable[[Tensor], Any], x: Tensor) -> dict[str, int]:
    """MACs per sample that ``function(x)`` spends in each convolution and linear layer of ``net``, by name.

    The calls of a layer are added up; a layer that is not called is not there.
    """
    macs_of: dict[str, int] = {}
    began: list[int] = []
    with counting() as macs, ExitStack() as hooks:

        def begin(*_: Any) -> None:
            began.append(macs.total())

        def end(name: str) -> None:
            macs_of[name] = macs_of.get(name, 0) + macs.total() - began.pop()

        for name, module in net.named_modules():
            if isinstance(module, nn.Linear | _ConvNd):
                hooks.callback(module.register_forward_pre_hook(begin).remove)
                hooks.callback(module.register_forward_hook(lambda *_, name=name: end(name)).remove)
        function(x)
    return {name: total // len(x) for name, total in macs_of.items()}


def param_bytes(module: nn.Module) -> int:
    """Bytes of the parameters and buffers of ``module``, shared ones once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in [*module.parameters(), *module.buffers()])


def _unlisted() -> dict[Any, Any]:
    """Kernels of attention and of recurrent layers that torch has and its registry of FLOPs lacks."""
    known = {
        "_scaled_dot_product_flash_attention_for_cpu": _attention_flops,
        "mkldnn_rnn_layer": _lstm_layer_flops,
        "_cudnn_rnn": _recurrent_flops,
    }
    return {getattr(torch.ops.aten, name): flops for name, flops in known.items() if hasattr(torch.ops.aten, name)}


def _lstm_layer_flops(steps: Any, from_input: Any, from_state: Any, *_: Any, **__: Any) -> int:
    """FLOPs of one layer of an LSTM on ``[t b d]``, by the shapes of its two matrices."""
    return FLOPS_PER_MAC * steps[0] * steps[1] * (from_input[0] * from_input[1] + from_state[0] * from_state[1])


def _recurrent_flops(steps: Any, weights: Any, *_: Any, **__: Any) -> int:
    """FLOPs of a recurrent net on ``[t b d]``, by the shapes of all its matrices; biases are vectors."""
    return FLOPS_PER_MAC * steps[0] * steps[1] * sum(shape[0] * shape[1] for shape in weights if len(shape) == 2)


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """FLOPs of one attention call from the shapes ``[b heads t d]`` of query, key and value."""
    return sdpa_flop_count(query, key, value)
