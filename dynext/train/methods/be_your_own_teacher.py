"""Be Your Own Teacher: the deepest classifier teaches the shallow ones its answers and its features."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from dynext.errors import FitError
from dynext.fitting import FitConfig
from dynext.losses.exits import hints, taught_by_last
from dynext.net.dynamic_net import DynamicNet
from dynext.net.embeddings import embed_batch, embedding_sizes
from dynext.seeding import seeded
from dynext.train.exit_loop import Augment, BatchSampler, check_plain, labelled, train_whole
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
        SourceError: no labels, or samples of another shape than the model expects.

    Source: Zhang et al., ICCV 2019, arXiv:1905.08094: alpha .3, temperature 3, hint .03. Ours takes squared distances
    of pooled features, not of maps, so that exits of any shape can learn.
    """
    return self_distilled(
        net,
        BatchSampler.of(source, net, augment),
        labelled(config, "Be Your Own Teacher", alpha=alpha, temperature=temperature, hint=hint),
        alpha=alpha,
        temperature=temperature,
        hint=hint,
        batch_size=batch_size,
    )


def self_distilled(
    net: DynamicNet,
    rows: BatchSampler,
    config: FitConfig,
    *,
    alpha: float,
    temperature: float,
    hint: float,
    batch_size: int,
) -> DynamicNet:
    """The last exit teaches the others, on labelled samples: shared with SCAN."""
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
        *widths, width = embedding_sizes(net)
        with seeded(seed):
            self.adapters = nn.ModuleList(nn.Linear(d, width).to(like) for d in widths)

    def forward(self, x: Tensor) -> Embedded:
        seen = embed_batch(self.net, x)
        *early_e, final_bd = seen.embedding_e
        adapted_e = [adapter(f) for adapter, f in zip(self.adapters, early_e, strict=True)]
        return Embedded(seen.logits_e, adapted_e, final_bd)
