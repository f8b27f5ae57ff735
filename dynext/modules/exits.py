"""Exits: auxiliary classifiers after a stage, in a form that the tap's shape suggests.

An exit has three parts. ``reduce`` has no parameters (layout, pooling), so that what comes out of it can be cached
while the trunk is frozen; ``embedder`` gives the embedding ``[b d]``; ``classifier`` the logits ``[b k]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from dynext.errors import PolicyError, SplitError
from dynext.modules.exit_layers import Attention, Copy, Cosine, FeatureAttention, PoolMix, Reduce, Separable, TokenPool
from dynext.modules.projections import build_projection

HeadSpec = dict[str, Any]
"""JSON that rebuilds a head: ``kind``, ``tap`` (shape of one sample), ``num_classes`` and the kind's own sizes.

Heads of any kind may also have ``answer``, ``"linear"`` or ``"cosine"`` (the classifier), and ``projection``, what the
embedding goes through before it, as `dynext.modules.projections` writes it. Without them the classifier is linear and
sees the embedding as it is.
"""

Heads = Callable[[tuple[int, ...]], HeadSpec]
"""Given the tap's shape (one sample), the head to put there."""

KINDS = ("conv", "strided", "attention", "pooled", "token", "flat", "given", "masked")
ANSWERS = ("linear", "cosine")
MAX_SIDE = 16
"""Feature maps are averaged down to at most this many pixels a side before a head is given them."""


class Exit(nn.Module):
    """An auxiliary classifier after stage ``after``: tap ``[b ...]`` to logits ``[b k]``."""

    def __init__(self, spec: HeadSpec, *, after: int, name: str) -> None:
        super().__init__()
        self.spec, self.after, self.name = dict(spec), after, name
        self.reduce, embedder, classifier = _BUILDERS[spec["kind"]](spec)
        self.embedder, self.classifier = _with_answer(spec, embedder, classifier)
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


def _conv(spec: HeadSpec) -> tuple[nn.Module, nn.Module, nn.Module]:
    reduce, (channels, height, width) = _reduce(spec)
    hidden = int(spec["hidden"])
    layers: list[nn.Module] = []
    for _ in range(int(spec["convs"])):
        stride = 2 if min(height, width) > 4 else 1
        layers += [nn.Conv2d(channels, hidden, 3, stride, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU()]
        channels, height, width = hidden, math.ceil(height / stride), math.ceil(width / stride)
    layers += [Separable(hidden) for _ in range(int(spec.get("separable", 0)))]
    (kernel_h, stride_h, out_height), (kernel_w, stride_w, out_width) = _window(height), _window(width)
    layers += [nn.AvgPool2d((kernel_h, kernel_w), (stride_h, stride_w)), nn.Flatten()]
    return reduce, nn.Sequential(*layers), nn.Linear(hidden * out_height * out_width, int(spec["num_classes"]))


def _strided(spec: HeadSpec) -> tuple[nn.Module, nn.Module, nn.Module]:
    reduce, (channels, _, _) = _reduce(spec)
    hidden = int(spec["hidden"])
    layers: list[nn.Module] = []
    for _ in range(int(spec["convs"])):
        layers += [nn.Conv2d(channels, hidden, 3, 2, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU()]
        channels = hidden
    embedder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return reduce, embedder, nn.Linear(channels, int(spec["num_classes"]))


def _attention(spec: HeadSpec) -> tuple[nn.Module, nn.Module, nn.Module]:
    reduce, embedder, classifier = _conv(spec)
    _, (channels, height, width) = _reduce(spec)
    attention = Attention(channels, int(spec["squeeze"]), (height, width))
    return reduce, nn.Sequential(attention, embedder), classifier


def _window(side: int) -> tuple[int, int, int]:
    """Kernel and stride of a pooling that leaves at most 3 cells a side, and how many it leaves."""
    cells = min(side, 3)
    stride = side // cells
    return side - (cells - 1) * stride, stride, cells


def _pooled(spec: HeadSpec) -> tuple[nn.Module, nn.Module, nn.Module]:
    reduce, (channels, _, _) = _reduce(spec)
    return reduce, PoolMix(channels), nn.Linear(channels, int(spec["num_classes"]))


def _token(spec: HeadSpec) -> tuple[nn.Module, nn.Module, nn.Module]:
    width, hidden = 2 * int(spec["tap"][-1]), int(spec["hidden"])
    embedder = nn.Sequential(TokenPool(), nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU())
    return nn.Identity(), embedder, nn.Linear(hidden, int(spec["num_classes"]))


def _flat(spec: HeadSpec) -> tuple[nn.Module, nn.Module, nn.Module]:
    width, hidden = math.prod(spec["tap"]), int(spec["hidden"])
    embedder = nn.Sequential(nn.Flatten(), nn.LayerNorm(width), nn.Linear(width, hidden), nn.ReLU())
    return nn.Identity(), embedder, nn.Linear(hidden, int(spec["num_classes"]))


def _masked(spec: HeadSpec) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Any head behind a mask: the first child of the embedder is the mask, the second the head's own embedder."""
    inner = spec["inner"]
    reduce, embedder, classifier = _BUILDERS[inner["kind"]](inner)
    embedder, classifier = _with_answer(inner, embedder, classifier)
    if isinstance(reduce, Reduce):
        _, (channels, height, width) = _reduce(inner)
        mask: nn.Module = Attention(channels, int(spec["squeeze"]), (height, width))
    else:
        mask = FeatureAttention(int(spec["tap"][-1]), int(spec["squeeze"]))
    return reduce, nn.Sequential(mask, embedder), classifier


def _given(spec: HeadSpec) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The tap holds the logits already: see `dynext.net.cascade`."""
    return nn.Identity(), nn.Identity(), Copy()


def _with_answer(spec: HeadSpec, embedder: nn.Module, classifier: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The embedding through a projection, if the spec has one, and the classifier that it asks for behind it."""
    if "projection" not in spec and spec.get("answer") != "cosine":
        return embedder, classifier
    width = getattr(classifier, "in_features", None)
    if width is None:
        raise SplitError(f"a {spec['kind']} head has no classifier of its own, so it cannot be given another")
    if "projection" in spec:
        projection, width = build_projection(spec["projection"], int(width))
        embedder = nn.Sequential(embedder, projection)
    answer = Cosine if spec.get("answer") == "cosine" else nn.Linear
    return embedder, answer(int(width), int(spec["num_classes"]))


_BUILDERS: Mapping[str, Callable[[HeadSpec], tuple[nn.Module, nn.Module, nn.Module]]] = {
    "conv": _conv,
    "strided": _strided,
    "attention": _attention,
    "pooled": _pooled,
    "token": _token,
    "flat": _flat,
    "given": _given,
    "masked": _masked,
}


def _reduce(spec: HeadSpec) -> tuple[nn.Module, tuple[int, int, int]]:
    tap = tuple(spec["tap"])
    channels_last = bool(spec.get("channels_last", False))
    channels, height, width = (tap[2], tap[0], tap[1]) if channels_last else tap
    factor = min(math.ceil(max(height, width) / MAX_SIDE), height, width)
    return Reduce(channels_last=channels_last, factor=factor), (channels, height // factor, width // factor)


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
    """Any ``heads`` behind a mask that is computed from the tap and multiplied into it; for maps, tokens and vectors.

    ``squeeze`` numbers in the mask's middle default to half the tap's channels, at least 8.
    """

    def masked(tap: tuple[int, ...]) -> HeadSpec:
        return mask_spec(heads(tap), squeeze=squeeze)

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
    """The head that the tap's shape suggests: maps get convolutions, tokens token heads, vectors a hidden layer."""

    def heads(tap: tuple[int, ...]) -> HeadSpec:
        if len(tap) == 3:
            return conv_heads(num_classes, hidden=hidden, convs=convs, separable=separable)(tap)
        if len(tap) == 2:
            return token_heads(num_classes, hidden=hidden)(tap)
        width = hidden or min(max(math.prod(tap), 64), 256)
        return {"kind": "flat", "tap": list(tap), "num_classes": num_classes, "hidden": width}

    return heads


def cosine_heads(heads: Heads) -> Heads:
    """The same heads with cosine classifiers, for which only the direction of an embedding counts."""
    return lambda tap: {**heads(tap), "answer": "cosine"}


def build_exit(spec: HeadSpec, *, after: int, name: str) -> Exit:
    """An exit from its JSON.

    Raises:
        PolicyError: a kind of head, or of answer, that this version does not know.
    """
    if spec.get("kind") not in KINDS:
        raise PolicyError(f"head kind {spec.get('kind')!r}; this version knows {', '.join(KINDS)}")
    if spec.get("answer", ANSWERS[0]) not in ANSWERS:
        raise PolicyError(f"an answer by {spec['answer']!r}; this version knows {', '.join(ANSWERS)}")
    return Exit(spec, after=after, name=name)


def _expect(tap: tuple[int, ...], rank: int, kind: str) -> None:
    if len(tap) != rank:
        raise SplitError(
            f"a {kind} head needs a tap of {rank} dimensions a sample, this one has shape {tap}; "
            f"use dx.default_heads, which goes by the shape"
        )


def channels_last(tap: tuple[int, ...]) -> bool:
    """Whether a map's shape is ``[h w c]``, as between blocks of Swin and ConvNeXt: two equal sizes, then another."""
    return tap[0] == tap[1] != tap[2]
