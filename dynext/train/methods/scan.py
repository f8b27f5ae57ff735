"""SCAN: attention before each shallow classifier, the deepest one as teacher, all together where none is sure."""

from __future__ import annotations

from dynext.errors import FitError
from dynext.fitting import FitConfig
from dynext.net.cascade import cascade
from dynext.net.dynamic_net import DynamicNet
from dynext.train.exit_loop import Augment, BatchSampler, check_joinable, labelled
from dynext.train.methods.be_your_own_teacher import self_distilled
from dynext.types import Source


def scan(
    net: DynamicNet,
    source: Source,
    config: FitConfig,
    *,
    alpha: float = 0.5,
    temperature: float = 3.0,
    hint: float = 5e-7,
    ensemble: bool = True,
    batch_size: int = 64,
    augment: Augment | None = None,
) -> DynamicNet:
    """A copy of ``net``, trunk and attention exits trained together, the last exit teaching the others.

    Loss as in `dynext.train.be_your_own_teacher`. Thresholds are searched by `dynext.policies.genetic_front`.

    Args:
        ensemble: the mean of all exits' logits answers where none was sure: `dynext.cascade`, rule "mean".

    Raises:
        FitError: exits without attention (attach `dx.heads.attention_heads`), or figures out of range.
        SourceError: no labels, or samples of another shape than the model expects.

    Source: Zhang et al., NeurIPS 2019, arXiv:1906.03951: attention modules, hint 5e-7, thresholds by a genetic
    algorithm, the ensemble as the last word.
    """
    rows = BatchSampler.of(source, net, augment)
    if ensemble:
        check_joinable(net)
    plain = [exit.name for exit in net.exits if exit.spec["kind"] != "attention"]
    if plain:
        raise FitError(f"the exit after {plain[0]} has no attention; attach exits with dx.heads.attention_heads")
    config = labelled(config, "SCAN", alpha=alpha, temperature=temperature, hint=hint)
    trained = self_distilled(net, rows, config, alpha=alpha, temperature=temperature, hint=hint, batch_size=batch_size)
    return cascade(trained, "mean") if ensemble else trained
