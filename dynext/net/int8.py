"""Layers in 8 bits: weights as int8 with a scale per output channel, inputs rounded to uint8 as they come.

A quantized layer takes and gives floats, so that it can stand wherever the float one stood: residual sums, pooling and
heads stay as they are. On CPUs the sum runs in oneDNN's int8 kernels; elsewhere, and in exported programs, it is
written as quantize and dequantize around the float operation, which ONNX runtimes turn into int8 kernels of their own.

Shapes: b samples, c channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dynext.errors import ModelError
from dynext.graph.macs import param_bytes

if TYPE_CHECKING:
    from dynext.net.dynamic_net import DynamicNet

LEVELS, MOST = 255, 63
"""Steps of an input (uint8) and the largest weight (int8, symmetric).

x86 CPUs without VNNI add two products in 16 bits, which saturate: with weights up to 63 they cannot (2 x 255 x 63 is
32,130), and the kernel gives what the formula gives, on any machine.
"""

AT_ONCE = 1 << 17
"""How many numbers are rounded at once: what is between floats and bytes then stays in the cache."""

Int8Spec = dict[str, Any]
"""JSON: ``{"layers": {name in the float net: [scale, zero] of its input}}``."""


class Int8Layer(nn.Module):
    """A convolution or a linear layer in 8 bits, with the ReLU behind it if there is one.

    Args:
        scale, zero: ``x = scale (q - zero)`` for inputs, q in 0 ... 255.
    """

    weight: Tensor
    step: Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear, *, relu: bool, scale: float = 1.0, zero: int = 0) -> None:
        super().__init__()
        weight = layer.weight.detach()
        step_c = (weight.flatten(1).abs().amax(1) / MOST).clamp_min(torch.finfo(weight.dtype).tiny)
        rounded = (weight / step_c.view(-1, *[1] * (weight.ndim - 1))).round().clamp(-MOST, MOST)
        self.register_buffer("weight", rounded.to(torch.int8))
        self.register_buffer("step", step_c)
        self.scale, self.zero = float(scale), int(zero)
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().clone()
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.relu = relu
        self.conv: tuple[list[int], list[int], list[int], int] | None = None
        self.pointwise = False
        if isinstance(layer, nn.Conv2d):
            padding = cast("tuple[int, ...]", layer.padding)
            self.conv = (list(layer.stride), list(padding), list(layer.dilation), layer.groups)
            # as a linear layer: for some sizes the convolution's kernel wants the packed weight in another layout than
            # it was packed in, and lays it out anew in every call, at up to 80 times the cost of the sum
            self.pointwise = layer.kernel_size == (1, 1) and not any(padding) and layer.groups == 1
        self._ready: tuple[Any, ...] | None = None

    def forward(self, x: Tensor) -> Tensor:
        fits = x.device.type == "cpu" and x.dtype == torch.float32 and self.step.dtype == torch.float32
        return self._in_kernel(x) if fits and has_kernels() and not _exporting() else self._written_out(x)

    def _written_out(self, x: Tensor) -> Tensor:
        from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers these operators

        ops = torch.ops.quantized_decomposed
        scale, zero = self.scale, self.zero
        q = ops.quantize_per_tensor(x.float(), scale, zero, 0, LEVELS, torch.uint8)
        rounded = ops.dequantize_per_tensor(q, scale, zero, 0, LEVELS, torch.uint8).to(x.dtype)
        weight = ops.dequantize_per_channel(self.weight, self.step, None, 0, -MOST, MOST, torch.int8).to(x.dtype)
        out = (
            F.linear(rounded, weight, self.bias)
            if self.conv is None
            else F.conv2d(rounded, weight, self.bias, *self.conv)
        )
        return out.relu() if self.relu else out

    def _in_kernel(self, x: Tensor) -> Tensor:
        if self.conv is None:
            return self._summed(self._rounded(x))
        out = self._convolved(x, *self.conv)
        # the kernels lay their output out channels last, whatever they were given, and a `view` behind would fail
        last = channels_last(x)
        given = torch.channels_last if last else torch.contiguous_format
        return out if channels_last(out) == last else out.clone(memory_format=given)

    def _convolved(self, x: Tensor, *conv: Any) -> Tensor:
        if not self.pointwise:
            return self._summed(self._rounded(x), *conv)
        down, across = conv[0]
        q_bhwc = self._rounded(x[:, :, ::down, ::across]).permute(0, 2, 3, 1)
        out = self._summed(q_bhwc.flatten(0, 2).contiguous())
        return out.view(*q_bhwc.shape[:3], -1).permute(0, 3, 1, 2)

    def _summed(self, q: Tensor, *conv: Any) -> Tensor:
        packed, zeros = self._prepared()
        kernel = torch.ops.onednn.qconv_pointwise if conv else torch.ops.onednn.qlinear_pointwise
        known = (q, self.scale, self.zero, packed, self.step, zeros, self.bias.detach(), *conv)
        return kernel(*known, 1.0, 0, torch.float32, "relu" if self.relu else "none", [], "")

    def _rounded(self, x: Tensor) -> Tensor:
        """``x`` as uint8, a few samples at a time."""
        if x.numel() <= AT_ONCE:
            return self._levels(x).to(torch.uint8)
        q, some = torch.empty_like(x, dtype=torch.uint8), max(1, AT_ONCE // x[0].numel())
        for part, out in zip(x.split(some), q.split(some), strict=True):
            out.copy_(self._levels(part))
        return q

    def _levels(self, x: Tensor) -> Tensor:
        return (x / self.scale).round_().add_(self.zero).clamp_(0, LEVELS)

    def _prepared(self) -> tuple[Any, ...]:
        """The weight in the kernel's own layout, made once for the weight that is there."""
        key = (self.weight.data_ptr(), 0 if self.weight.is_inference() else self.weight._version)
        if self._ready is None or self._ready[0] != key:
            zeros = torch.zeros(len(self.weight), dtype=torch.int64)
            ops = torch.ops.onednn
            if self.conv is None or self.pointwise:
                packed = ops.qlinear_prepack(self.weight.flatten(1), None)
            else:
                packed = ops.qconv_prepack(self.weight, self.step, self.scale, self.zero, *self.conv, None)
            self._ready = (key, packed, zeros)
        return self._ready[1:]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": None}  # the kernel's layout cannot be copied

    def extra_repr(self) -> str:
        return f"{list(self.weight.shape)}, relu={self.relu}"


def channels_last(x_bchw: Tensor) -> bool:
    """Whether torch takes a tensor to be laid out channels last, as its float convolutions do: by strides, with
    ``[b c 1 1]`` and other ambiguous tensors taken to be contiguous.
    """
    least = 0
    for dim in (1, 3, 2, 0):
        size, stride = x_bchw.shape[dim], x_bchw.stride(dim)
        if size == 0 or stride < max(least, 1) or (dim == 0 and least == x_bchw.stride(1)):
            return False
        least = stride * size
    return True


def has_kernels() -> bool:
    """Whether this torch brings oneDNN's int8 kernels; without them quantized layers are as slow as float ones."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qconv_pointwise")


_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
"""Older versions of torch only know that something is being traced."""


def to_int8(net: DynamicNet, spec: Int8Spec | None) -> DynamicNet:
    """A copy of ``net`` with the layers of ``spec`` in 8 bits, BatchNorm and ReLU behind them folded in.

    Raises:
        ModelError: a layer that is not there, or that cannot be in 8 bits.
    """
    small = copy.deepcopy(net).eval()
    if spec is None:
        return small
    followed = dict(chains(small))
    for name, (scale, zero) in spec["layers"].items():
        if name not in followed:
            raise ModelError(f"{name!r} is no layer of this net that can be in 8 bits; quantize it again")
        followed[name].replace(scale, zero)
    for stage in small.staged.stages:
        if isinstance(stage.body, fx.GraphModule):
            stage.body.delete_all_unused_submodules()
            stage.body.recompile()
        stage.param_bytes = param_bytes(stage.body)
    small.cost = None
    small.int8 = dict(spec)
    return small


class Chain:
    """A layer with what can be folded into it: the BatchNorm and the ReLU behind it, where nothing else reads what they
    read.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        self.layer, self.norm, self.relu = layer, cast("_BatchNorm | None", None), False

    def take(self, module: Any) -> bool:
        """Whether ``module`` is folded in."""
        if isinstance(module, _BatchNorm) and self.norm is None and not self.relu and isinstance(self.layer, nn.Conv2d):
            self.norm = module if module.running_mean is not None else None
            return self.norm is not None
        if _is_relu(module) and not self.relu:
            self.relu = True
            return True
        return False

    def quantized(self, scale: float, zero: int) -> Int8Layer:
        layer = self.layer
        if self.norm is not None:
            layer = fuse_conv_bn_eval(cast(nn.Conv2d, layer), cast(nn.BatchNorm2d, self.norm))
        return Int8Layer(layer, relu=self.relu, scale=scale, zero=zero).to(self.layer.weight.device).eval()

    def replace(self, scale: float, zero: int) -> None:
        raise ModelError(f"{type(self).__name__} stands nowhere")


class _InGraph(Chain):
    """Behind a call in a stage's graph."""

    def __init__(self, body: fx.GraphModule, node: fx.Node) -> None:
        super().__init__(cast("nn.Conv2d | nn.Linear", body.get_submodule(str(node.target))))
        self.body, self.node, self.folded = body, node, cast("list[fx.Node]", [])
        while len(node.users) == 1:
            node = next(iter(node.users))
            if node.op not in ("call_module", "call_function", "call_method") or len(node.all_input_nodes) != 1:
                break
            if not self.take(body.get_submodule(str(node.target)) if node.op == "call_module" else node.target):
                break
            self.folded.append(node)

    def replace(self, scale: float, zero: int) -> None:
        for node in reversed(self.folded):
            node.replace_all_uses_with(node.all_input_nodes[0])
            self.body.graph.erase_node(node)
        self.body.set_submodule(str(self.node.target), self.quantized(scale, zero))


class _InSequence(Chain):
    """A child of an ``nn.Sequential``, those behind it folded in and their places left empty."""

    def __init__(self, parent: nn.Module, name: str) -> None:
        super().__init__(cast("nn.Conv2d | nn.Linear", getattr(parent, name)))
        self.parent, self.name, self.folded = parent, name, cast("list[str]", [])
        if isinstance(parent, nn.Sequential):
            children = list(parent._modules)
            for behind in children[children.index(name) + 1 :]:
                if not self.take(parent._modules[behind]):
                    break
                self.folded.append(behind)

    def replace(self, scale: float, zero: int) -> None:
        setattr(self.parent, self.name, self.quantized(scale, zero))
        for name in self.folded:
            setattr(self.parent, name, nn.Identity())


def chains(net: DynamicNet) -> Iterator[tuple[str, Chain]]:
    """Every layer that can be in 8 bits, by name, with what folds into it: float ones that are called in one place."""
    shared = _shared(net)
    for s, stage in enumerate(net.staged.stages):
        prefix = f"staged.stages.{s}.body"
        if not isinstance(stage.body, fx.GraphModule):
            yield from _in_modules(stage.body, prefix, shared)
            continue
        calls = [node for node in stage.body.graph.nodes if node.op == "call_module"]
        for node in calls:
            module, name = stage.body.get_submodule(str(node.target)), f"{prefix}.{node.target}"
            if not _can(module):
                yield from _in_modules(module, name, shared)
            elif id(module) not in shared and sum(call.target == node.target for call in calls) == 1:
                yield name, _InGraph(stage.body, node)
    for e, exit in enumerate(net.exits):
        yield from _in_modules(exit, f"exits.{e}", shared)


def _in_modules(module: nn.Module, prefix: str, shared: set[int]) -> Iterator[tuple[str, Chain]]:
    for path, parent in module.named_modules(prefix=prefix):
        for name, child in parent.named_children():
            if _can(child) and id(child) not in shared:
                yield f"{path}.{name}", _InSequence(parent, name)


def _can(module: nn.Module) -> bool:
    if type(module) is nn.Linear:
        return True
    return type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _shared(net: nn.Module) -> set[int]:
    """Modules that stand in several places, or whose weight does."""
    places: dict[int, int] = {}
    for _, module in net.named_modules(remove_duplicate=False):
        keys = {id(module), *(id(tensor) for tensor in _own(module))}
        for key in keys:
            places[key] = places.get(key, 0) + 1
    return {id(module) for module in net.modules() if any(places[k] > 1 for k in [id(module), *map(id, _own(module))])}


def _own(module: nn.Module) -> Iterable[Tensor]:
    return module.parameters(recurse=False)


def _is_relu(module: Any) -> bool:
    return isinstance(module, nn.ReLU) or module in _RELUS


_RELUS: Sequence[Any] = (F.relu, torch.relu, torch.relu_, F.relu_, "relu", "relu_")
