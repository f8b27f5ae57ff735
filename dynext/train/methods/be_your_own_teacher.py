"""Be Your Own Teacher: the deepest classifier teaches the shallow ones its answers and its features."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from typing_extensions import Unpack

from dynext.data.given import LearnOptions, takes_data
from dynext.errors import FitError
from dynext.fitting import FitConfig, configured
from dynext.losses.exits import hint_loss, self_distillation
from dynext.net.dynamic_net import DynamicNet
from dynext.net.embeddings import embed_batch, embedding_sizes
from dynext.seeding import seeded
from dynext.train.batches import Augment, BatchSampler
from dynext.train.exit_loop import check_plain, labelled, train_whole
from dynext.types import Data
from dynext.usual_modes import in_usual_modes

USUAL = FitConfig(batch_size=64)


@in_usual_modes
@takes_data("source")
def be_your_own_teacher(
    net: DynamicNet,
    source: Data,
    config: FitConfig | None = None,
    *,
    alpha: float = 0.3,
    temperature: float = 3.0,
    hint: float = 0.03,
    augment: Augment | None = None,
    **options: Unpack[LearnOptions],
) -> DynamicNet:
    """A copy of ``net``, trunk and exits trained together: by labels, and by the last exit as a teacher of the others.

    Loss: `dynext.losses.self_distillation`, plus ``hint`` times `dynext.losses.hint_loss` between the exits'
    embeddings, each through a linear adapter that is dropped after training, and the input of the last linear layer.

    Args:
        alpha: share of the teacher's part in an early exit's loss.

    Raises:
        FitError: no early exit, a share outside [0, 1], or a net that does not end in a linear layer.
        SourceError: no labels, or samples of another shape than the model expects.

    Source: Zhang et al., ICCV 2019, arXiv:1905.08094: alpha .3, temperature 3, hint .03. Ours takes squared distances
    of pooled features, not of maps, so that exits of any shape can learn.
    """
    config = configured(USUAL, config, options)
    batches = BatchSampler.of(source, net, augment)
    config = labelled(config, "Be Your Own Teacher", alpha=alpha, temperature=temperature, hint=hint)
    return taught_by_last_exit(net, batches, config, alpha=alpha, temperature=temperature, hint=hint)


def taught_by_last_exit(
    net: DynamicNet, batches: BatchSampler, config: FitConfig, *, alpha: float, temperature: float, hint: float
) -> DynamicNet:
    """A copy of ``net`` whose last exit taught the others, on labelled samples: shared with SCAN."""
    check_plain(net)
    if not 0 <= alpha <= 1 or not temperature > 0 or hint < 0:
        raise FitError(
            f"alpha={alpha}, temperature={temperature}, hint={hint}; give a share, a positive one, and 0 or more"
        )

    def loss(outputs: AdaptedOutputs, y_b: Tensor, done: float) -> Tensor:
        answers = self_distillation(outputs.logits_e, y_b, alpha=alpha, temperature=temperature)
        return answers + hint * hint_loss(outputs.adapted_e, outputs.final_bd)

    return train_whole(net, batches, config, lambda student: AdaptedExits(student, config.seed), loss)


class AdaptedOutputs(NamedTuple):
    """Every exit's logits, the early exits' adapted embeddings ``[b d]``, and the last exit's."""

    logits_e: list[Tensor]
    adapted_e: list[Tensor]
    final_bd: Tensor


class AdaptedExits(nn.Module):
    """``x [b ...]`` to logits and embeddings of every exit, the latter adapted to the size of the last exit's."""

    def __init__(self, net: DynamicNet, seed: int) -> None:
        super().__init__()
        self.net = net
        like = next(net.parameters())
        *widths, width = embedding_sizes(net)
        with seeded(seed):
            self.adapters = nn.ModuleList(nn.Linear(d, width).to(like) for d in widths)

    def forward(self, x: Tensor) -> AdaptedOutputs:
        seen = embed_batch(self.net, x)
        *early_e, final_bd = seen.embedding_e
        adapted_e = [adapter(f) for adapter, f in zip(self.adapters, early_e, strict=True)]
        return AdaptedOutputs(seen.logits_e, adapted_e, final_bd)
