"""Be Your Own Teacher: the deepest classifier teaches the shallow ones its answers and its features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dynext.core.modes import evaluating
from dynext.core.net import DynamicNet
from dynext.errors import FitError
from dynext.fit import FitConfig
from dynext.losses import hints, taught_by_last
from dynext.seeding import seeded
from dynext.train.loop import Augment, Rows, check_plain, labelled, train_whole
from dynext.types import Source


def be_your_own_teacher(
    net: DynamicNet,
    source: Source,
    config: FitConfig,
    *,
    alpha: float = 0.3,
    temperature: float = 3.0,
    hint: float = 0.03,
    batch_size: int = 64,
    augment: Augment | None = None,
) -> DynamicNet:
    """A copy of ``net``, trunk and exits trained together: by labels, and by the last exit as a teacher of the others.

    Loss: `dynext.losses.taught_by_last`, plus ``hint`` times `dynext.losses.hints` between the exits' embeddings, each
    through a linear adapter that is dropped after training, and what the last linear layer of the net is given.

    Raises:
        FitError: no early exit, a share outside [0, 1], or a net that does not end in a linear layer.
        SourceError: no labels, or rows of another shape than the net eats.

    Source: Zhang et al., ICCV 2019, arXiv:1905.08094: alpha .3, temperature 3, hint .03. Ours takes squared distances
    of pooled features, not of maps, so that exits of any shape can learn.
    """
    return self_distilled(
        net,
        Rows.of(source, net, augment),
        labelled(config, "Be Your Own Teacher", alpha=alpha, temperature=temperature, hint=hint),
        alpha=alpha,
        temperature=temperature,
        hint=hint,
        batch_size=batch_size,
    )


def self_distilled(
    net: DynamicNet, rows: Rows, config: FitConfig, *, alpha: float, temperature: float, hint: float, batch_size: int
) -> DynamicNet:
    """The last exit teaches the others, on labelled rows: shared with SCAN."""
    check_plain(net)
    if not 0 <= alpha <= 1 or not temperature > 0 or hint < 0:
        raise FitError(
            f"alpha={alpha}, temperature={temperature}, hint={hint}; give a share, a positive one, and 0 or more"
        )

    def loss(seen: Embedded, y_b: Tensor, done: float) -> Tensor:
        taught = taught_by_last(seen.logits_e, y_b, alpha=alpha, temperature=temperature)
        return taught + hint * hints(seen.adapted_e, seen.final_bd)

    return train_whole(net, rows, config, lambda student: Embedding(student, config.seed), loss, batch_size=batch_size)


class Embedded(NamedTuple):
    """Every exit's logits, the early exits' adapted embeddings ``[b d]``, and the last exit's."""

    logits_e: list[Tensor]
    adapted_e: list[Tensor]
    final_bd: Tensor


class Embedding(nn.Module):
    """``x [b ...]`` to logits and embeddings of every exit; adapters bring those to the last exit's size."""

    def __init__(self, net: DynamicNet, seed: int) -> None:
        super().__init__()
        self.net = net
        like = next(net.parameters())
        width = last_linear(net).in_features
        widths = [embedding.shape[1] for embedding in _embeddings(net)]
        with seeded(seed):
            self.adapters = nn.ModuleList(nn.Linear(d, width).to(like) for d in widths)

    def forward(self, x: Tensor) -> Embedded:
        with _given_to(last_linear(self.net)) as given:
            taps, final = self.net.taps(x)
        embedding_e = [exit.embed(tap) for exit, tap in zip(self.net.exits, taps, strict=True)]
        logits_e = [exit.classifier(f) for exit, f in zip(self.net.exits, embedding_e, strict=True)]
        adapted_e = [adapter(f) for adapter, f in zip(self.adapters, embedding_e, strict=True)]
        return Embedded([*logits_e, final], adapted_e, given[0])


@torch.no_grad()
def _embeddings(net: DynamicNet) -> list[Tensor]:
    like = next(net.parameters())
    with evaluating(net):
        taps, _ = net.taps(like.new_zeros(1, *net.staged.input_shape))
        return [exit.embed(tap) for exit, tap in zip(net.exits, taps, strict=True)]


def last_linear(net: DynamicNet) -> nn.Linear:
    """The layer that gives the full net's logits.

    Raises:
        FitError: the last stage has no linear layer with an output a class.
    """
    layers = [m for m in net.staged.stages[-1].modules() if isinstance(m, nn.Linear)]
    if not layers or layers[-1].out_features != net.num_classes:
        raise FitError(
            "the net does not end in a linear layer (nn.Linear), whose input would be the last exit's features; "
            "train it jointly, or with multi-exit distillation"
        )
    return layers[-1]


@contextmanager
def _given_to(layer: nn.Linear) -> Iterator[list[Tensor]]:
    """What the layer is given, while this is open."""
    given: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    try:
        yield given
    finally:
        hook.remove()
