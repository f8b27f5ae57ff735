"""What each exit's classifier sees of a sample: its embedding, the last exit's too.

Shapes: b samples in a batch, n samples, k classes, d the size of an embedding, which differs from exit to exit. There
are e exits, numbered from 0, the last is the full net.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dynext.brief import short_repr
from dynext.data.given import takes_data
from dynext.data.indexing import check_samples
from dynext.errors import FitError, SourceError
from dynext.modules.exit_parts import NO_CLASSIFIER
from dynext.modules.layer_outputs import given_to
from dynext.modules.modes import evaluating, statistics
from dynext.net.dynamic_net import DynamicNet
from dynext.net.last_layer import last_linear
from dynext.types import BatchNormMode, Data, InputSpec
from dynext.usual_modes import in_usual_modes


class EmbeddedBatch(NamedTuple):
    """Every exit's embedding, e tensors ``[b d]``, and its logits, e tensors ``[b k]``."""

    embedding_e: list[Tensor]
    logits_e: list[Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings:
    """What every exit's classifier sees of the samples of a source (e tensors ``[n d]``) and answers (logits
    ``[n e k]``), with labels ``[n]`` where the source has them.
    """

    __repr__ = short_repr

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


def check_embeddings(net: DynamicNet) -> None:
    """Raises FitError: a cascade, whose exits have no embeddings, or a head of one's own that has none."""
    if net.cascade is not None:
        raise FitError("exits of a cascade hand on logits, they have no embeddings; give the net it was made of")
    for exit in net.exits:
        if not exit.embeds:
            raise FitError(f"the exit after {exit.name}: {NO_CLASSIFIER.format(name=exit.spec['module'])}")


def embed_batch(net: DynamicNet, x: Tensor) -> EmbeddedBatch:
    """Embeddings and logits of every exit for samples ``x [b ...]``, in the mode that the net is in.

    Raises:
        FitError: the net does not end in a linear layer on one vector a sample, or an exit has no embedding.
    """
    check_embeddings(net)
    with given_to(last_linear(net)) as given:
        taps, final = net.taps(x)
    if given[-1].ndim != 2:
        shape = tuple(given[-1].shape[1:])
        raise FitError(
            f"the last linear layer is given {shape} a sample, not one vector; its features cannot be compared"
        )
    embedding_e = [exit.embed(tap) for exit, tap in zip(net.exits, taps, strict=True)]
    logits_e = [exit.classifier(f) for exit, f in zip(net.exits, embedding_e, strict=True)]
    return EmbeddedBatch([*embedding_e, given[-1]], [*logits_e, final])


@in_usual_modes
@takes_data("source")
@torch.no_grad()
def embed(
    net: DynamicNet, source: Data, *, bn: BatchNormMode | None = None, spec: InputSpec | None = None
) -> Embeddings:
    """Every exit's embeddings and logits on every sample of ``source``; labels where it has some.

    Args:
        bn: which statistics the stages' BatchNorms use, as in `dynext.collect`.

    Raises:
        SourceError: no sample, or samples of another shape than the model expects.
        FitError: the net does not end in a linear layer, or its exits build on each other.
    """
    check_samples(source, net.staged.input_shape)
    check_embeddings(net)
    like = next(net.parameters())
    embedded: list[EmbeddedBatch] = []
    labels: list[Tensor] = []
    with evaluating(net), statistics(net.staged, bn or source.bn):
        for batch in source:
            embedding_e, logits_e = embed_batch(net, batch.x.to(like))
            embedded.append(EmbeddedBatch([f.float().cpu() for f in embedding_e], [f.float().cpu() for f in logits_e]))
            labels += [] if batch.y is None else [batch.y]
    if labels and sum(map(len, labels)) != len(source):
        raise SourceError(f"{sum(map(len, labels))} labels for {len(source)} samples; give one each, or none")
    columns = zip(*(batch.embedding_e for batch in embedded), strict=True)
    return Embeddings(
        embedding_e=tuple(torch.cat(column) for column in columns),
        logits_nek=torch.cat([torch.stack(batch.logits_e, dim=1) for batch in embedded]),
        label_n=torch.cat(labels) if labels else None,
    )


@torch.no_grad()
def embedding_sizes(net: DynamicNet) -> tuple[int, ...]:
    """How long each exit's embedding is, the last exit's included."""
    with evaluating(net):
        return tuple(f.shape[1] for f in embed_batch(net, net.staged.zeros(1)).embedding_e)
