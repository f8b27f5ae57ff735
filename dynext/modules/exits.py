"""Exits: auxiliary classifiers after a stage, in a form that the tap's shape suggests.

An exit has three parts. ``reduce`` has no parameters (layout, pooling), so that what comes out of it can be cached
while the trunk is frozen; ``embedder`` gives the embedding ``[b d]``; ``classifier`` the logits ``[b k]``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dynext.errors import SplitError
from dynext.graph.macs import count_macs
from dynext.modules.exit_parts import HeadSpec, build_parts
from dynext.modules.own_parts import OwnPart, own_macs

Heads = Callable[..., HeadSpec]
"""Given the tap's shape (one sample), the head to put there; some also ask for ``most_macs``, what it may cost."""

LEAST_WIDTH = 8
"""Channels that a head keeps where there is little left to save."""


class Exit(nn.Module):
    """An auxiliary classifier after stage ``after``: tap ``[b ...]`` to logits ``[b k]``."""

    def __init__(self, spec: HeadSpec, *, after: int, name: str, own: OwnPart | None = None) -> None:
        super().__init__()
        self.spec, self.after, self.name = dict(spec), after, name
        self.own = own
        """What a head of one's own is built from again; ``None`` for heads of ours."""
        self.reduce, self.embedder, self.classifier, whole = build_parts(spec, own)
        self.embeds = not whole
        """Whether what the classifier sees is an embedding; not for a head of one's own that does not end in one."""
        self.macs = 0
        """MACs per sample; filled in by whoever attaches the exit."""

    def embed(self, tap: Tensor) -> Tensor:
        """The embedding ``[b d]`` that the classifier sees."""
        return self.embedder(self.reduce(tap))

    def head(self, reduced: Tensor) -> Tensor:
        """Logits ``[b k]`` from what ``reduce`` gave: the part worth training on cached features."""
        return self.classifier(self.embedder(reduced))

    def forward(self, tap: Tensor) -> Tensor:
        return self.head(self.reduce(tap))


def conv_heads(num_classes: int, *, hidden: int | None = None, convs: int = 1, separable: int = 2) -> Heads:
    """Convolutions, a 3x3 grid of averages, linear; for maps ``[c h w]``.

    First ``convs`` full 3x3 convolutions of stride 2, then ``separable`` depthwise separable ones, each with BatchNorm
    and ReLU. ``hidden`` channels default to the tap's own, between 64 and 128, but at most four times these. A head
    with a large receptive field that knows where on the map it is (the grid) carries over best from synthesized samples
    to real ones.
    """

    def heads(tap: tuple[int, ...]) -> HeadSpec:
        _expect(tap, 3, "conv")
        spec = {"kind": "conv", "tap": list(tap), "num_classes": num_classes, "channels_last": channels_last(tap)}
        channels = tap[-1] if spec["channels_last"] else tap[0]
        width = hidden or min(max(channels, 64), 128, max(4 * channels, 16))
        return {**spec, "hidden": width, "convs": convs, "separable": separable}

    return heads


def strided_heads(num_classes: int, *, hidden: int = 128, convs: int = 2) -> Heads:
    """3x3 convolutions of stride 2 with BatchNorm and ReLU, averaged, linear; for maps ``[c h w]``.

    Source: MSDNet's classifier, Huang et al., ICLR 2018, arXiv:1703.09844, for CIFAR.
    """

    def heads(tap: tuple[int, ...]) -> HeadSpec:
        _expect(tap, 3, "strided")
        spec = {"kind": "strided", "tap": list(tap), "num_classes": num_classes, "channels_last": channels_last(tap)}
        return {**spec, "hidden": hidden, "convs": convs}

    return heads


def attention_heads(
    num_classes: int, *, hidden: int | None = None, convs: int = 1, separable: int = 2, squeeze: int | None = None
) -> Heads:
    """`conv_heads` behind a mask that weighs places and channels of the map (`Attention`); for maps ``[c h w]``.

    ``squeeze`` channels in the mask's middle default to half the tap's own, at least 8.
    """
    plain = conv_heads(num_classes, hidden=hidden, convs=convs, separable=separable)

    def heads(tap: tuple[int, ...]) -> HeadSpec:
        _expect(tap, 3, "attention")
        channels = tap[-1] if channels_last(tap) else tap[0]
        return {**plain(tap), "kind": "attention", "squeeze": squeeze or max(channels // 2, 8)}

    return heads


def masked_heads(heads: Heads, *, squeeze: int | None = None) -> Heads:
    """Any ``heads`` of these behind a mask that is computed from the tap and multiplied into it; for maps, tokens and
    vectors.

    ``squeeze`` numbers in the mask's middle default to half the tap's channels, at least 8.
    """

    def masked(tap: tuple[int, ...], most_macs: int | None = None) -> HeadSpec:
        return mask_spec(_spec_of(heads, tap, most_macs, "masked_heads"), squeeze=squeeze)

    return masked


def mask_spec(inner: HeadSpec, *, squeeze: int | None = None) -> HeadSpec:
    """The JSON of a head behind a mask, from the head's own."""
    tap = tuple(inner["tap"])
    channels = tap[0] if len(tap) == 3 and not channels_last(tap) else tap[-1]
    width = squeeze or max(channels // 2, 8)
    spec = {"kind": "masked", "tap": list(tap), "num_classes": inner["num_classes"], "squeeze": width, "inner": inner}
    return {**spec, **({"channels_last": inner["channels_last"]} if "channels_last" in inner else {})}


def pooled_heads(num_classes: int) -> Heads:
    """Learned mix of average and maximum pooling, linear; the cheapest head for maps ``[c h w]``."""

    def heads(tap: tuple[int, ...]) -> HeadSpec:
        _expect(tap, 3, "pooled")
        return {"kind": "pooled", "tap": list(tap), "num_classes": num_classes, "channels_last": channels_last(tap)}

    return heads


def token_heads(num_classes: int, *, hidden: int | None = None) -> Heads:
    """First token beside the mean token, LayerNorm, one hidden layer, linear; for tokens ``[t d]``."""

    def heads(tap: tuple[int, ...]) -> HeadSpec:
        _expect(tap, 2, "token")
        return {"kind": "token", "tap": list(tap), "num_classes": num_classes, "hidden": hidden or min(tap[-1], 256)}

    return heads


def default_heads(num_classes: int, *, hidden: int | None = None, convs: int = 1, separable: int = 2) -> Heads:
    """The head that the tap's shape suggests: maps get convolutions, tokens token heads, vectors a hidden layer.

    Without ``hidden``, `dynext.attach` makes them narrower where they would cost more than an eighth of the MACs that
    leaving there saves, down to 8 channels: on a small net a head of the usual width costs as much as a stage.
    """

    def usual(tap: tuple[int, ...]) -> HeadSpec:
        if len(tap) == 3:
            return conv_heads(num_classes, hidden=hidden, convs=convs, separable=separable)(tap)
        if len(tap) == 2:
            return token_heads(num_classes, hidden=hidden)(tap)
        width = hidden or min(max(math.prod(tap), 64), 256)
        return {"kind": "flat", "tap": list(tap), "num_classes": num_classes, "hidden": width}

    def heads(tap: tuple[int, ...], most_macs: int | None = None) -> HeadSpec:
        return usual(tap) if hidden or most_macs is None else _narrowed(usual(tap), most_macs)

    return heads


def _narrowed(spec: HeadSpec, most_macs: int) -> HeadSpec:
    """The widest head of its kind, in steps of 8 channels, that costs at most so much; the narrowest if none does."""
    widths = [spec["hidden"], *range((spec["hidden"] - 1) // 8 * 8, LEAST_WIDTH - 1, -8)]
    narrower = ({**spec, "hidden": width} for width in widths)
    return next((one for one in narrower if _macs(one) <= most_macs), {**spec, "hidden": min(widths)})


def _macs(spec: HeadSpec) -> int:
    """What the head costs a sample; nothing is computed or drawn."""
    with torch.device("meta"):
        exit = build_exit(spec, after=0, name="").eval()
        return count_macs(exit, torch.empty(2, *spec["tap"]))


def cosine_heads(heads: Heads) -> Heads:
    """The same heads with cosine classifiers, for which only the direction of an embedding counts."""

    def cosine(tap: tuple[int, ...], most_macs: int | None = None) -> HeadSpec:
        return {**_spec_of(heads, tap, most_macs, "cosine_heads"), "answer": "cosine"}

    return cosine


def _spec_of(heads: Heads, tap: tuple[int, ...], most_macs: int | None, name: str) -> HeadSpec:
    further = {"most_macs": most_macs} if "most_macs" in inspect.signature(heads).parameters else {}
    spec = heads(tap, **further)
    if not isinstance(spec, dict):
        raise SplitError(
            f"{name} was given heads that make a {type(spec).__name__}; it takes heads of ours "
            f"(dx.heads.{name}(dx.default_heads(10))), and in a head of your own you write that layer yourself"
        )
    return spec


def build_exit(spec: HeadSpec, *, after: int, name: str, own: OwnPart | None = None) -> Exit:
    """An exit from its JSON, and from the module that it is made of where it is one's own.

    Raises:
        PolicyError: a kind of head, or of answer, that this version does not know, or a module that is missing.
    """
    return Exit(spec, after=after, name=name, own=own)


def exit_macs(exit: Exit, tap: Tensor) -> int:
    """What an exit costs a sample, by running it on ``tap [b ...]``."""
    counted = count_macs(exit, tap)
    return counted if exit.own is None else own_macs(counted, exit)


def _expect(tap: tuple[int, ...], rank: int, kind: str) -> None:
    if len(tap) != rank:
        raise SplitError(
            f"a {kind} head needs a tap of {rank} dimensions a sample, this one has shape {tap}; "
            f"use dx.default_heads, which goes by the shape"
        )


def channels_last(tap: tuple[int, ...]) -> bool:
    """Whether a map's shape is ``[h w c]``, as between blocks of Swin and ConvNeXt: two equal sizes, then another."""
    return tap[0] == tap[1] != tap[2]
