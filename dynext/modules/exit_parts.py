"""What exits are built of, by their JSON: a reduction of the tap, an embedder, a classifier.

``reduce`` has no parameters (layout, pooling), so that what comes out of it can be cached while the trunk is frozen;
``embedder`` gives the embedding ``[b d]``; ``classifier`` the logits ``[b k]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from dynext.errors import PolicyError, SplitError
from dynext.modules.exit_layers import Attention, Copy, Cosine, FeatureAttention, PoolMix, Reduce, Separable, TokenPool
from dynext.modules.own_parts import ExitParts, OwnPart, parts_of_own
from dynext.modules.projections import build_projection

HeadSpec = dict[str, Any]
"""JSON that rebuilds a head: ``kind``, ``tap`` (shape of one sample), ``num_classes`` and the kind's own sizes.

Heads of any kind may also have ``answer``, ``"linear"`` or ``"cosine"`` (the classifier), and ``projection``, what the
embedding goes through before it, as `dynext.modules.projections` writes it. Without them the classifier is linear and
sees the embedding as it is. A head of kind ``"own"`` is a module that was given: its JSON only says how to get at it.
"""

MAX_SIDE = 16
"""Feature maps are averaged down to at most this many pixels a side before a head is given them."""

NO_CLASSIFIER = (
    "a head of one's own ({name}) has no embedding and no classifier that could be replaced, as its answer is not what "
    "an nn.Linear in it gives; end it in nn.Linear, or name its parts self.embedder and self.classifier (an nn.Linear)"
)


def _conv(spec: HeadSpec) -> ExitParts:
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
    return ExitParts(
        reduce, nn.Sequential(*layers), nn.Linear(hidden * out_height * out_width, int(spec["num_classes"]))
    )


def _strided(spec: HeadSpec) -> ExitParts:
    reduce, (channels, _, _) = _reduce(spec)
    hidden = int(spec["hidden"])
    layers: list[nn.Module] = []
    for _ in range(int(spec["convs"])):
        layers += [nn.Conv2d(channels, hidden, 3, 2, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU()]
        channels = hidden
    embedder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return ExitParts(reduce, embedder, nn.Linear(channels, int(spec["num_classes"])))


def _attention(spec: HeadSpec) -> ExitParts:
    reduce, embedder, classifier, _ = _conv(spec)
    _, (channels, height, width) = _reduce(spec)
    attention = Attention(channels, int(spec["squeeze"]), (height, width))
    return ExitParts(reduce, nn.Sequential(attention, embedder), classifier)


def _window(side: int) -> tuple[int, int, int]:
    """Kernel and stride of a pooling that leaves at most 3 cells a side, and how many it leaves."""
    cells = min(side, 3)
    stride = side // cells
    return side - (cells - 1) * stride, stride, cells


def _pooled(spec: HeadSpec) -> ExitParts:
    reduce, (channels, _, _) = _reduce(spec)
    return ExitParts(reduce, PoolMix(channels), nn.Linear(channels, int(spec["num_classes"])))


def _token(spec: HeadSpec) -> ExitParts:
    width, hidden = 2 * int(spec["tap"][-1]), int(spec["hidden"])
    embedder = nn.Sequential(TokenPool(), nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU())
    return ExitParts(nn.Identity(), embedder, nn.Linear(hidden, int(spec["num_classes"])))


def _flat(spec: HeadSpec) -> ExitParts:
    width, hidden = math.prod(spec["tap"]), int(spec["hidden"])
    embedder = nn.Sequential(nn.Flatten(), nn.LayerNorm(width), nn.Linear(width, hidden), nn.ReLU())
    return ExitParts(nn.Identity(), embedder, nn.Linear(hidden, int(spec["num_classes"])))


def _given(spec: HeadSpec) -> ExitParts:
    """The tap holds the logits already: see `dynext.net.cascade`."""
    return ExitParts(nn.Identity(), nn.Identity(), Copy())


def _with_answer(spec: HeadSpec, parts: ExitParts) -> ExitParts:
    """The embedding through a projection, if the spec has one, and the classifier that it asks for behind it."""
    embedder, width = parts.embedder, classifier_width(parts, spec)
    if "projection" in spec:
        projection, width = build_projection(spec["projection"], width)
        embedder = nn.Sequential(embedder, projection)
    answer = Cosine if spec.get("answer") == "cosine" else nn.Linear
    return parts._replace(embedder=embedder, classifier=answer(width, int(spec["num_classes"])))


def classifier_width(parts: ExitParts, spec: HeadSpec) -> int:
    """How long the embedding is that a classifier could be put behind.

    Raises:
        SplitError: the head has none.
    """
    width = getattr(parts.classifier, "in_features", None)
    if width is not None and not parts.whole:
        return int(width)
    if spec["kind"] == "own":
        raise SplitError(NO_CLASSIFIER.format(name=spec["module"]))
    raise SplitError(f"a {spec['kind']} head has no classifier of its own, so it cannot be given another")


_BUILDERS: Mapping[str, Callable[[HeadSpec], ExitParts]] = {
    "conv": _conv,
    "strided": _strided,
    "attention": _attention,
    "pooled": _pooled,
    "token": _token,
    "flat": _flat,
    "given": _given,
}
KINDS = (*_BUILDERS, "masked", "own")
ANSWERS = ("linear", "cosine")


def build_parts(spec: HeadSpec, own: OwnPart | None) -> ExitParts:
    """The parts of an exit from its JSON; ``own`` is the module that a spec of kind ``"own"`` speaks of.

    Raises:
        PolicyError: a kind of head, or of answer, that this version does not know, or a module that is missing.
    """
    if spec.get("kind") not in KINDS:
        raise PolicyError(f"head kind {spec.get('kind')!r}; this version knows {', '.join(KINDS)}")
    if spec.get("answer", ANSWERS[0]) not in ANSWERS:
        raise PolicyError(f"an answer by {spec['answer']!r}; this version knows {', '.join(ANSWERS)}")
    if spec["kind"] == "masked":
        parts = _masked(spec, own)
    else:
        parts = _own(spec, own) if spec["kind"] == "own" else _BUILDERS[spec["kind"]](spec)
    if "projection" not in spec and spec.get("answer") != "cosine":
        return parts
    return _with_answer(spec, parts)


def _masked(spec: HeadSpec, own: OwnPart | None) -> ExitParts:
    """Any head behind a mask: the first child of the embedder is the mask, the second the head's own embedder."""
    inner = spec["inner"]
    reduce, embedder, classifier, whole = build_parts(inner, own)
    if isinstance(reduce, Reduce):
        _, (channels, height, width) = _reduce(inner)
        mask: nn.Module = Attention(channels, int(spec["squeeze"]), (height, width))
    else:
        mask = FeatureAttention(int(spec["tap"][-1]), int(spec["squeeze"]))
    return ExitParts(reduce, nn.Sequential(mask, embedder), classifier, whole)


def _own(spec: HeadSpec, own: OwnPart | None) -> ExitParts:
    """The module that was given, in three parts; another number of classes gets a linear classifier of its own."""
    if own is None:
        raise PolicyError("a head of one's own, and the module that it is made of is missing; give it again (heads=)")
    parts = parts_of_own(own.fresh(), spec["tap"])
    num_classes = int(spec["num_classes"])
    if num_classes == int(spec["classes_made"]):
        return parts
    return parts._replace(classifier=nn.Linear(classifier_width(parts, spec), num_classes))


def _reduce(spec: HeadSpec) -> tuple[nn.Module, tuple[int, int, int]]:
    tap = tuple(spec["tap"])
    channels_last = bool(spec.get("channels_last", False))
    channels, height, width = (tap[2], tap[0], tap[1]) if channels_last else tap
    factor = min(math.ceil(max(height, width) / MAX_SIDE), height, width)
    return Reduce(channels_last=channels_last, factor=factor), (channels, height // factor, width // factor)
