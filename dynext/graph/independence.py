"""Whether a sample's answer depends on the samples beside it: no sample may leave the batch of such a net.

Random samples are run twice in batches of one size, each the middle one of different neighbors: what a kernel does to
one sample is then the same to the last bit in any precision, and what is left is true dependence. One alone shows what
depends on the number of samples. The first place in the graph where they differ is named.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from dynext.errors import SplitError, line
from dynext.graph.lines import place
from dynext.graph.probe import NodeRecord
from dynext.seeding import generator, seeded_if_drawn

HEAVY_MACS = 20e9
"""A net of more MACs a sample is run on four samples instead of seven."""
OF_SPREAD = 1e-3
"""How far neighbors may move an answer, of how far the answers of two samples are apart."""
OF_SPREAD_QUANTIZED = 0.05
"""The same where a net rounds to integers: scales that are taken from the batch are noise up to there."""
OF_SPREAD_ALONE = 0.02
"""The same for one sample alone, whose kernels may be others."""
NOISE = (1.0, 1e-5)
"""What a kernel may move a number by in batches of one size: units in the last place of the largest; of it."""
NOISE_QUANTIZED = (1.0, 0.02)
"""The same where a net rounds to integers."""
NOISE_ALONE = (8.0, 3e-4)
"""The same between batches of different sizes."""
NEIGHBOR_SCALE = 2.0
"""How much larger some neighbors are: a largest value that the batch shares is then theirs."""


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Two batches that share a sample, at the position ``row`` of both."""

    first: Tensor
    second: Tensor
    row: int


def check_independence(traced: fx.GraphModule, example: Tensor, macs: int, dims: Mapping[fx.Node, int]) -> None:
    """Run the graph on random samples beside different neighbors, and alone.

    Args:
        traced: the net as a graph from ``[b ...]`` to logits ``[b k]``.
        macs: of one sample; says how many samples are affordable.
        dims: for each node that gives a tensor, the dimension that follows the number of samples.

    Raises:
        SplitError: an answer moves by more than numerical noise; says which module or line is the first to.
    """
    pair = _pair(example, small=macs > HEAVY_MACS)
    with _kept_buffers(traced), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, is_random = _answers(traced, pair.first)
        second, _ = _answers(traced, pair.second)
        share, spread = _share(traced), _largest(first - first[pair.row])
        noise = NOISE if share == OF_SPREAD else NOISE_QUANTIZED
        if _largest(first[pair.row] - second[pair.row]) > max(spread * share, _noise(first, noise)):
            node = _culprit(traced, (pair.first, pair.row), (pair.second, pair.row), dims, NOISE)
            raise SplitError(_refusal(traced, node))
        if macs <= HEAVY_MACS and not is_random:
            allowed = max(spread * max(OF_SPREAD_ALONE, share), max(_noise(first, noise), _noise(first, NOISE_ALONE)))
            _check_alone(traced, pair, first[pair.row], allowed, dims)


def batch_dims(two: Mapping[fx.Node, NodeRecord], three: Mapping[fx.Node, NodeRecord]) -> dict[fx.Node, int]:
    """The one dimension of each node's tensor that is 2 for two samples and 3 for three."""
    dims: dict[fx.Node, int] = {}
    for node in set(two) & set(three):
        sizes = list(zip(two[node].shape or (), three[node].shape or (), strict=False))
        differing = [index for index, (small, large) in enumerate(sizes) if small != large]
        if len(differing) == 1 and sizes[differing[0]] == (2, 3):
            dims[node] = differing[0]
    return dims


def _pair(example: Tensor, *, small: bool) -> _Pair:
    random = generator(0)
    count = 3 if small else 5
    shape = (count, *example.shape[1:])
    if example.is_floating_point():
        x = torch.randn(shape, generator=random, dtype=torch.float32)
        x[-2:] *= NEIGHBOR_SCALE
    else:
        low, high = int(example.min()), int(example.max())
        x = torch.randint(low, high + 1, shape, generator=random)
    x = x.to(example)
    if small:  # a sample first, beside another
        return _Pair(first=x[[0, 1]], second=x[[0, 2]], row=0)
    return _Pair(first=x[[1, 0, 2]], second=x[[3, 0, 4]], row=1)


def _answers(traced: fx.GraphModule, x: Tensor) -> tuple[Tensor, bool]:
    """What the net gives for ``x``, and whether it drew random numbers for it."""
    with seeded_if_drawn(0):
        before = _random_state(x)
        return fx.Interpreter(traced).run(x), not torch.equal(before, _random_state(x))


def _random_state(x: Tensor) -> Tensor:
    return torch.cuda.get_rng_state(x.device) if x.is_cuda else torch.get_rng_state()


def _share(traced: fx.GraphModule) -> float:
    names = [f"{type(m).__module__}.{type(m).__name__}" for m in traced.modules()]
    names += [getattr(node.target, "__name__", str(node.target)) for node in traced.graph.nodes]
    return OF_SPREAD_QUANTIZED if any("quant" in name.lower() for name in names) else OF_SPREAD


def _noise(tensor: Tensor, noise: tuple[float, float]) -> float:
    """What a kernel may move a number of this tensor by."""
    units, share = noise
    return _largest(tensor) * max(units * torch.finfo(tensor.dtype).eps, share)


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().nan_to_num(0.0, 0.0, 0.0).max()) if tensor.numel() else 0.0


def _check_alone(
    traced: fx.GraphModule, pair: _Pair, mine: Tensor, allowed: float, dims: Mapping[fx.Node, int]
) -> None:
    x = pair.first[pair.row : pair.row + 1]
    try:
        alone, _ = _answers(traced, x)
        if alone.shape == (1, *mine.shape) and _largest(alone[0] - mine) <= allowed:
            return
        reason = f"a sample is answered otherwise alone than among {len(pair.first)}"
    except Exception as error:
        reason = f"the net fails on one sample alone ({line(error)})"
    node = _culprit(traced, (pair.first, pair.row), (x, 0), dims, (64.0, 1e-2))
    first = "" if node is None else f"; the first to do so is {place(traced, node)}"
    raise SplitError(
        f"{reason}, and samples that leave may leave one{first}; make that the same for any number of samples"
    )


def _refusal(traced: fx.GraphModule, node: fx.Node | None) -> str:
    first = "" if node is None else f"; the first to give another output for the same input is {place(traced, node)}"
    return (
        f"a sample's answer depends on the samples beside it, so none may leave the batch{first}; compute that for "
        f"each sample alone (a BatchNorm: with running statistics, in eval mode)"
    )


def _culprit(
    traced: fx.GraphModule,
    first: tuple[Tensor, int],
    second: tuple[Tensor, int],
    dims: Mapping[fx.Node, int],
    noise: tuple[float, float],
) -> fx.Node | None:
    """The first node that gives another output for the sample at that row of the second batch, or fails there."""
    recorders = [_Recorder(traced, dims, x, row) for x, row in (first, second)]
    for node in traced.graph.nodes:
        mine, other = (recorder.rows.get(node) for recorder in recorders)
        differs = mine is not None and other is not None and _differ(mine, other, noise)
        if differs or recorders[1].failed is node:
            while node.target is operator.getitem and isinstance(node.args[0], fx.Node):
                node = node.args[0]
            return node
    return None


def _differ(first: Tensor, second: Tensor, noise: tuple[float, float]) -> bool:
    if first.shape != second.shape or not first.is_floating_point():
        return not torch.equal(first, second)
    return _largest(first - second) > _noise(first, noise)


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps what each node gives for one sample of the batch, up to where it fails."""

    def __init__(self, traced: fx.GraphModule, dims: Mapping[fx.Node, int], x: Tensor, row: int) -> None:
        super().__init__(traced)
        self.extra_traceback = False
        self._dims, self._row = dims, row
        self.rows: dict[fx.Node, Tensor] = {}
        self.failed: fx.Node | None = None
        with seeded_if_drawn(0), suppress(Exception):
            self.run(x)

    def run_node(self, n: fx.Node) -> Any:
        self.failed = n
        out = super().run_node(n)
        self.failed = None
        if n in self._dims and isinstance(out, Tensor) and n.op != "output":
            self.rows[n] = out.select(self._dims[n], self._row).clone()
        return out


@contextmanager
def _kept_buffers(traced: fx.GraphModule) -> Iterator[None]:
    """A net that goes on adapting its statistics has the old ones afterwards."""
    kept = [(buffer, buffer.clone()) for buffer in traced.buffers()]
    try:
        yield
    finally:
        for buffer, old in kept:
            buffer.copy_(old)
