"""What heads on a frozen trunk are trained on: the trunk is run once over the samples, and its outputs are kept.

They are what the heads see after their parameter-free reduction, in half precision where values fit, so that thousands
of steps cost little more than the heads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dynext.brief import short_repr
from dynext.data.content import Content
from dynext.data.given import takes_data
from dynext.data.indexing import check_samples
from dynext.errors import FitError, SourceError
from dynext.modules.modes import evaluating, statistics
from dynext.modules.skip_rule import SkipRule
from dynext.net.dynamic_net import DynamicNet
from dynext.net.masked_pass import gated, greedy
from dynext.types import BatchNormMode, Data, InputSpec

HALF_MAX = 65504.0
"""Largest number in half precision; nets without normalization layers whose inputs are large go beyond."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """What heads on a frozen trunk are trained on: a tensor ``[n ...]`` per early exit (float16, or float32 where
    values do not fit), and the full net's logits ``[n k]``.
    """

    __repr__ = short_repr

    reduced_e: tuple[Tensor, ...]
    logits_nk: Tensor
    content: Content = Content()
    """Which real samples these are, at least."""

    def __len__(self) -> int:
        return len(self.logits_nk)

    def subset(self, index: Tensor) -> Features:
        return replace(self, reduced_e=tuple(r[index] for r in self.reduced_e), logits_nk=self.logits_nk[index])

    @staticmethod
    def join(parts: list[Features]) -> Features:
        """Samples of several sources, one after the other."""
        columns = zip(*(p.reduced_e for p in parts), strict=True)
        return Features(
            reduced_e=tuple(torch.cat(column) for column in columns),
            logits_nk=torch.cat([p.logits_nk for p in parts]),
            content=Content.union(p.content for p in parts),
        )


@takes_data(unlabelled=("source",))
@torch.inference_mode()
def cache_features(
    net: DynamicNet,
    teacher: nn.Module | None,
    source: Data,
    *,
    bn: BatchNormMode | None = None,
    keep: SkipRule | None = None,
    progress: bool = True,
    spec: InputSpec | None = None,
) -> Features:
    """Run the trunk once over ``source``. BatchNorms of trunk and teacher use ``bn`` (the source's own by default).

    Args:
        teacher: whose logits are the soft labels; ``None`` for the net itself.
        keep: skip stages meanwhile, by this rule (`Policy.keep_g`): heads then learn from what they will see.

    Raises:
        SourceError: no samples, or samples of another shape than the model expects.
    """
    check_samples(source, net.staged.input_shape)
    mode = bn or source.bn
    apart = keep is not None or (teacher is not None and not same_function(net, teacher))
    like = next(net.parameters())
    reduced_e: list[Tensor] = []
    logits_nk = torch.empty(0)
    contents: list[Content] = []
    done = 0
    guide = net.staged if teacher is None or not apart else teacher
    bar = tqdm(total=len(source), desc="features", unit="sample", disable=None if progress else True, leave=False)
    with bar, evaluating(net), evaluating(guide), statistics(net.staged, mode), statistics(guide, mode):
        for batch in source:
            x = batch.x.to(like)
            contents += [] if source.bn == "batch" else [Content.of_batch(batch.x)]
            taps, final = net.taps(x) if keep is None else _skipping(net, x, keep)
            here = slice(done, done + len(x))
            batch_e = [exit.reduce(tap) for exit, tap in zip(net.exits, taps, strict=True)]
            if not done:
                reduced_e = [torch.empty(len(source), *r.shape[1:], dtype=torch.float16) for r in batch_e]
                logits_nk = torch.empty(len(source), final.shape[1])
            for e, r in enumerate(batch_e):
                if reduced_e[e].dtype == torch.float16 and r.abs().amax() > HALF_MAX:
                    reduced_e[e] = reduced_e[e].float()
                reduced_e[e][here] = r.to(reduced_e[e].dtype).cpu()
            logits_nk[here] = (guide(x) if apart else final).float().cpu()
            done += len(x)
            bar.update(len(x))
    if not torch.isfinite(logits_nk).all():
        raise SourceError(
            "the teacher's answers hold NaN or infinity on these samples; look at the samples' normalization"
        )
    return Features(reduced_e=tuple(reduced_e), logits_nk=logits_nk, content=Content.union(contents))


def _skipping(net: DynamicNet, x: Tensor, keep: SkipRule) -> tuple[list[Tensor], Tensor]:
    passed = gated(net, x, greedy(keep), [least is not None for least in keep])
    return passed.taps, passed.logits_bk


def same_function(net: DynamicNet, teacher: nn.Module) -> bool:
    """Whether the trunk still computes what the teacher does: its own logits then are the soft labels, at no cost."""
    like = next(net.parameters())
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, *net.staged.input_shape, generator=draw).to(like)
    with evaluating(net), evaluating(teacher):
        ours, theirs = net(x), teacher(x)
    if ours.shape != theirs.shape:
        raise FitError(f"the teacher answers {tuple(theirs.shape)}, the net {tuple(ours.shape)}; same classes expected")
    return torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def head_logits(net: DynamicNet, features: Features, *, batch_size: int = 512) -> Tensor:
    """Every exit's logits ``[n e k]`` from cached features; the last is the full net's."""
    like = next(net.parameters())
    parts = []
    with evaluating(net):
        for index in torch.arange(len(features)).split(batch_size):
            early = [
                exit.head(reduced[index].to(like)).float().cpu()
                for exit, reduced in zip(net.exits, features.reduced_e, strict=True)
            ]
            parts.append(torch.stack([*early, features.logits_nk[index]], dim=1))
    return torch.cat(parts)
