"""What each exit's classifier sees of a sample: its embedding, the last exit's too.

Shapes: b samples in a batch, n samples, k classes, d the size of an embedding, which differs from exit to exit. There
are e exits, numbered from 0, the last is the full net.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from dynext.data.indexing import check_samples
from dynext.errors import FitError, SourceError
from dynext.modules.exit_layers import Cosine
from dynext.modules.modes import evaluating, statistics
from dynext.net.dynamic_net import DynamicNet
from dynext.types import BatchNormMode, Source


class Seen(NamedTuple):
    """Every exit's embedding, e tensors ``[b d]``, and its logits, e tensors ``[b k]``."""

    embedding_e: list[Tensor]
    logits_e: list[Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings:
    """What exits make of the samples of a source: e tensors ``[n d]``, logits ``[n e k]``, labels if there were
    some.
    """

    embedding_e: tuple[Tensor, ...]
    logits_nek: Tensor
    label_n: Tensor | None = None

    def __len__(self) -> int:
        return len(self.logits_nek)

    def subset(self, index: Tensor) -> Embeddings:
        """The samples at ``index [b]``."""
        return Embeddings(
            embedding_e=tuple(f[index] for f in self.embedding_e),
            logits_nek=self.logits_nek[index],
            label_n=None if self.label_n is None else self.label_n[index],
        )


def last_linear(net: DynamicNet) -> nn.Linear | Cosine:
    """The layer that gives the full net's logits.

    Raises:
        FitError: the last stage has no linear layer with an output a class, or several that the logits come out of.
    """
    linears = [m for m in net.staged.stages[-1].modules() if isinstance(m, nn.Linear | Cosine)]
    layers = [m for m in linears if m.out_features == net.num_classes]
    found = layers[0] if len(layers) == 1 else gives_logits(net, layers)
    if found is None:
        mixed = f"mixes the answers of {len(layers)} linear layers"
        raise FitError(
            f"the net {mixed if layers else 'does not end in a linear layer'} (nn.Linear), whose input would be the "
            f"last exit's features; use a method that reads logits alone: train it jointly, or with distillation"
        )
    return found


Layer = TypeVar("Layer", bound=nn.Module)


def gives_logits(net: DynamicNet, layers: Sequence[Layer]) -> Layer | None:
    """That one of the net's ``layers`` whose output is the full net's as it is, by two samples of zeros."""
    said: dict[Layer, Tensor] = {}
    hooks = [m.register_forward_hook(lambda m, _, out: said.__setitem__(m, out)) for m in layers]
    like = next(net.parameters())
    try:
        with torch.no_grad(), evaluating(net):
            logits = net.staged(torch.zeros(2, *net.staged.input_shape, dtype=like.dtype, device=like.device))
    finally:
        for hook in hooks:
            hook.remove()
    same = (m for m, out in said.items() if out.data_ptr() == logits.data_ptr() and out.shape == logits.shape)
    return next(same, None)


@contextmanager
def given_to(layer: nn.Module) -> Iterator[list[Tensor]]:
    """What the layer is given, call by call, while this is open."""
    given: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    try:
        yield given
    finally:
        hook.remove()


def seen_by(net: DynamicNet, x: Tensor) -> Seen:
    """Embeddings and logits of every exit for samples ``x [b ...]``, in the mode that the net is in.

    Raises:
        FitError: the net does not end in a linear layer on one vector a sample.
    """
    with given_to(last_linear(net)) as given:
        taps, final = net.taps(x)
    if given[-1].ndim != 2:
        shape = tuple(given[-1].shape[1:])
        raise FitError(
            f"the last linear layer is given {shape} a sample, not one vector; its features cannot be compared"
        )
    embedding_e = [exit.embed(tap) for exit, tap in zip(net.exits, taps, strict=True)]
    logits_e = [exit.classifier(f) for exit, f in zip(net.exits, embedding_e, strict=True)]
    return Seen([*embedding_e, given[-1]], [*logits_e, final])


@torch.no_grad()
def embed(net: DynamicNet, source: Source, *, bn: BatchNormMode | None = None) -> Embeddings:
    """Every exit's embeddings and logits on every sample of ``source``; labels where it has some.

    Args:
        bn: which statistics the stages' BatchNorms use, as in `dynext.collect`.

    Raises:
        SourceError: no sample, or samples of another shape than the model expects.
        FitError: the net does not end in a linear layer, or its exits build on each other.
    """
    check_samples(source, net.staged.input_shape)
    if net.cascade is not None:
        raise FitError("exits of a cascade hand on logits, they have no embeddings; give the net it was made of")
    like = next(net.parameters())
    found: list[Seen] = []
    labels: list[Tensor] = []
    with evaluating(net), statistics(net.staged, bn or source.bn):
        for batch in source:
            seen = seen_by(net, batch.x.to(like))
            found.append(Seen([f.float().cpu() for f in seen.embedding_e], [f.float().cpu() for f in seen.logits_e]))
            labels += [] if batch.y is None else [batch.y]
    if labels and sum(map(len, labels)) != len(source):
        raise SourceError(f"{sum(map(len, labels))} labels for {len(source)} samples; give one each, or none")
    columns = zip(*(seen.embedding_e for seen in found), strict=True)
    return Embeddings(
        embedding_e=tuple(torch.cat(column) for column in columns),
        logits_nek=torch.cat([torch.stack(seen.logits_e, dim=1) for seen in found]),
        label_n=torch.cat(labels) if labels else None,
    )


@torch.no_grad()
def embedding_sizes(net: DynamicNet) -> tuple[int, ...]:
    """How long each exit's embedding is, the last exit's included."""
    like = next(net.parameters())
    with evaluating(net):
        return tuple(f.shape[1] for f in seen_by(net, like.new_zeros(1, *net.staged.input_shape)).embedding_e)
