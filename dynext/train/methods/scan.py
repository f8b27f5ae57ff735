"""SCAN: attention before each shallow classifier, the deepest one as teacher, all together where none is sure."""

from __future__ import annotations

from typing_extensions import Unpack

from dynext.data.given import LearnOptions, takes_data
from dynext.errors import FitError
from dynext.fitting import FitConfig, configured
from dynext.net.cascade import cascade
from dynext.net.dynamic_net import DynamicNet
from dynext.train.batches import Augment, BatchSampler
from dynext.train.exit_loop import check_joinable, labelled
from dynext.train.methods.be_your_own_teacher import taught_by_last_exit
from dynext.types import Data
from dynext.usual_modes import in_usual_modes

USUAL = FitConfig(batch_size=64)


@in_usual_modes
@takes_data("source")
def scan(
    net: DynamicNet,
    source: Data,
    config: FitConfig | None = None,
    *,
    alpha: float = 0.5,
    temperature: float = 3.0,
    hint: float = 5e-7,
    ensemble: bool = True,
    augment: Augment | None = None,
    **options: Unpack[LearnOptions],
) -> DynamicNet:
    """A copy of ``net``, trunk and attention exits trained together, the last exit teaching the others.

    Loss as in `dynext.train.be_your_own_teacher`. Thresholds are searched by `dynext.policies.genetic_front`.

    Args:
        alpha: share of the teacher's part in an early exit's loss.
        hint: weight of `dynext.losses.hint_loss`.
        ensemble: the mean of all exits' logits answers where none was sure (`dynext.net.cascade`, rule "mean").

    Raises:
        FitError: exits without attention (attach `dx.heads.attention_heads`), or figures out of range.
        SourceError: no labels, or samples of another shape than the model expects.

    Source: Zhang et al., NeurIPS 2019, arXiv:1906.03951: attention modules, hint 5e-7, thresholds by a genetic
    algorithm, the ensemble as the last word.
    """
    config = configured(USUAL, config, options)
    batches = BatchSampler.of(source, net, augment)
    if ensemble:
        check_joinable(net)
    plain = [exit.name for exit in net.exits if exit.spec["kind"] != "attention"]
    if plain:
        raise FitError(f"the exit after {plain[0]} has no attention; attach exits with dx.heads.attention_heads")
    config = labelled(config, "SCAN", alpha=alpha, temperature=temperature, hint=hint)
    trained = taught_by_last_exit(net, batches, config, alpha=alpha, temperature=temperature, hint=hint)
    return cascade(trained, "mean") if ensemble else trained
