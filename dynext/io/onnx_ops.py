"""What torch's ONNX exporter cannot do: adaptive max-pooling is taken apart, the rest told of by its layer."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx

_COLORS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_UNKNOWN = re.compile(r"No (?:ONNX function|decompositions?)\b.*?OpOverload\(op='([\w.:]+)'", re.DOTALL)
_POOLS = (
    torch.ops.aten.adaptive_max_pool1d.default,
    torch.ops.aten.adaptive_max_pool2d.default,  # which torch makes of the first
    torch.ops.aten.adaptive_max_pool3d.default,
)


def supported(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """``program`` with adaptive max-pooling as slices and maxima, which any size of input and output has.

    Where somebody reads the places of the maxima as well it is left, and will be refused.
    """
    pools = [node for node in program.graph.nodes if node.target in _POOLS]
    if not pools or any(_reads_places(node) for node in pools):
        return program
    return program.run_decompositions(dict.fromkeys(_POOLS, _adaptive_max))


def reason(error: Exception, program: torch.export.ExportedProgram | None = None) -> str:
    """Why an export failed, as one line: the operator and its layer where they are known, else the first cause."""
    chain = list(_chain(error))
    for one in chain:
        unknown = _UNKNOWN.search(str(one))
        if unknown is not None:
            layer = _layer(unknown[1], program)
            return f"ONNX export knows no {unknown[1]}{layer}; replace that layer, or export to torch"
    root = _COLORS.sub("", str(chain[-1])).strip().split("\n\n")[0]
    kind = type(chain[-1]).__name__
    return f"{kind}: {' '.join(root.split()) or 'no message'}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _layer(name: str, program: torch.export.ExportedProgram | None) -> str:
    """The layer whose operator ``name`` is, as the model calls it, with its line of code."""
    for node in [] if program is None else program.graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        if str(node.target).rpartition(".")[0] == name.replace("::", ".") and stack:
            path, kind = stack[-1]
            kind = kind if isinstance(kind, str) else kind.__qualname__
            path = re.sub(r"L\['\w+'\]\.?", "", path)
            return f" ({kind.rpartition('.')[2]}{f' {path}' if path else ''})"
    return ""


def _reads_places(node: fx.Node) -> bool:
    return any(user.target is operator.getitem and user.args[1] == 1 and user.users for user in node.users)


def _adaptive_max(x: Tensor, output_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """One dimension after the other; the second result is read by nobody."""
    for dim, size in zip(range(-len(output_size), 0), output_size, strict=True):
        x = _max_along(x, dim, size)
    return x, torch.zeros_like(x, dtype=torch.int64)


def _max_along(x: Tensor, dim: int, size: int) -> Tensor:
    length = x.shape[dim]
    if length % size == 0:
        return x.unflatten(dim, (size, length // size)).amax(dim)
    starts = [i * length // size for i in range(size)]
    ends = [-(-(i + 1) * length // size) for i in range(size)]
    windows = [x.narrow(dim, s, e - s).amax(dim, keepdim=True) for s, e in zip(starts, ends, strict=True)]
    return torch.cat(windows, dim)
