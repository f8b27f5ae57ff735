"""Exits that borrow the attention of later layers while they learn, and give it back before they are used.

``lend_attention`` puts beside each exit a module that sees later layers (`Lookout`) and, in the exit, a mask that the
exit makes of its own feature. `dynext.prune.distill_attention` teaches the mask what the module says. ``detach`` takes
the modules away, and the masks too where training has faded them out.

Shapes: b samples, k classes. There are e exits, the last is the full net.

Source: ours. Attention transfer (Zagoruyko & Komodakis, ICLR 2017) and SAD (Hou et al., ICCV 2019) distil maps between
nets and between neighbouring layers; here the teacher is a mask that has seen later layers, and it is pruned.
"""

from __future__ import annotations

import copy
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from dynext.errors import FitError, SplitError
from dynext.graph.deepest import with_deepest
from dynext.graph.macs import count_macs
from dynext.modules.exit_layers import Attention, FeatureAttention
from dynext.modules.exits import Exit, HeadSpec, build_exit, mask_spec
from dynext.modules.modes import evaluating
from dynext.net.dynamic_net import DynamicNet
from dynext.prune.attention_module import Lookout
from dynext.seeding import seeded

Later = Literal["deepest", "next"]
"""What a module sees beside its exit's own feature: the last map of the net, or the tap of the next exit."""


class Paths(NamedTuple):
    """One exit's two ways to look at a reduced tap: masks, and logits ``[b k]`` behind them."""

    own: Tensor
    """The mask ``b`` that the exit makes of its own feature, as strong as it still is."""
    lent: Tensor
    """The mask ``a`` of the module that sees a later layer."""
    own_bk: Tensor
    lent_bk: Tensor


class Auxiliary(nn.Module):
    """A dynamic net with attention lent to its exits; what is kept of it is what `detach` gives.

    Attributes:
        net: the student: exits of kind ``"masked"``.
        strength: how much the exits' own masks count: 1 wholly, 0 not at all, which is when they can be left out.
        later: what the modules look at.
    """

    def __init__(self, net: DynamicNet, lookouts: list[Lookout], *, later: Later) -> None:
        super().__init__()
        self.net = net
        self.lookouts = cast("list[Lookout]", nn.ModuleList(lookouts))
        self.later = later
        self.strength = 1.0

    def paths(self, reduced_e: list[Tensor]) -> list[Paths]:
        """Both ways of every early exit, from what exits and the deepest map were reduced to (as `watching` gives it).

        Both ways go through the head in one batch, so that its BatchNorms know one kind of samples.
        """
        found = []
        for e, (exit, lookout) in enumerate(zip(self.net.exits, self.lookouts, strict=True)):
            own, later = reduced_e[e], reduced_e[-1 if self.later == "deepest" else e + 1]
            a, b = lookout(own, later), self._own_mask(exit, own)
            own_bk, lent_bk = exit.classifier(_parts(exit)[1](torch.cat([own * b, own * a]))).chunk(2)
            found.append(Paths(own=b, lent=a, own_bk=own_bk, lent_bk=lent_bk))
        return found

    @torch.no_grad()
    def all_exits(self, x: Tensor) -> Tensor:
        """Every exit's logits ``[b e k]`` on the student's way, in evaluation: what `detach` keeps."""
        with evaluating(self.net):
            taps, final = self.net.taps(x)
            early = [self._own_way(exit, exit.reduce(tap)) for exit, tap in zip(self.net.exits, taps, strict=True)]
        return torch.stack([*early, final], dim=1)

    @torch.no_grad()
    def attached(self, x: Tensor) -> Tensor:
        """Every exit's logits ``[b e k]`` with the later layers' attention: more than an exit can know at run time."""
        paths, final = self._seen(x)
        return torch.stack([*(path.lent_bk for path in paths), final], dim=1)

    @torch.no_grad()
    def look(self, x: Tensor) -> list[Paths]:
        """Masks and logits of both ways on samples ``x [b ...]``, in evaluation."""
        return self._seen(x)[0]

    def _own_way(self, exit: Exit, own: Tensor) -> Tensor:
        seen = own * self._own_mask(exit, own) if self.strength else own
        return exit.classifier(_parts(exit)[1](seen))

    def _own_mask(self, exit: Exit, own: Tensor) -> Tensor:
        """The exit's mask as strong as it counts; exactly itself, or exactly 1, at the two ends."""
        mask = _parts(exit)[0].mask(own)
        return mask if self.strength == 1 else 1 - self.strength * (1 - mask)

    def _seen(self, x: Tensor) -> tuple[list[Paths], Tensor]:
        watch = watching(self.net)
        with evaluating(self):
            taps, final = watch.taps(x)
            reduced_e = [exit.reduce(tap) for exit, tap in zip(watch.exits, taps, strict=True)]
            return self.paths(reduced_e), final


def lend_attention(
    net: DynamicNet, *, later: Later = "deepest", squeeze: int | None = None, seed: int = 0
) -> Auxiliary:
    """``net`` (a copy) with an untrained mask in each exit, and beside each a module that sees a later layer.

    Heads keep what they have learned. Any net that `split` takes, whatever its exits are.

    Args:
        later: ``"deepest"``, the last map of the net; ``"next"``, the tap of the next exit (the last exit's: the
            deepest map).
        squeeze: numbers in the middle of masks and modules; half the tap's channels, at least 8, by default.

    Raises:
        FitError: no early exit, another word for ``later``, a ``squeeze`` below 1, or a cascade.
    """
    if not len(net.exits) or net.cascade is not None:
        raise FitError(
            "attention is lent to early exits that do not build on each other; this net "
            + ("has none: attach some (dx.attach)" if net.cascade is None else "is a cascade: give the one it was of")
        )
    if later not in get_args(Later):
        raise FitError(f"later={later!r}; give one of {', '.join(get_args(Later))}")
    if squeeze is not None and squeeze < 1:
        raise FitError(f"squeeze={squeeze}; give how many numbers stand in the middle of a mask, 1 or more")
    student = copy.deepcopy(net)
    shapes = _reduced_shapes(watching(net))
    with seeded(seed):
        exits = [_masked(exit, squeeze) for exit in student.exits]
        student.exits = cast("list[Exit]", nn.ModuleList(exits))
        lookouts = [
            Lookout(shapes[e], shapes[-1 if later == "deepest" else e + 1], int(exit.spec["squeeze"]))
            for e, exit in enumerate(exits)
        ]
    like = next(student.parameters())
    student.cost = None
    return Auxiliary(student.eval(), [one.to(like) for one in lookouts], later=later).eval()


def detach(auxiliary: Auxiliary) -> DynamicNet:
    """The dynamic net without the modules, its logits what the student's way gave, bit for bit.

    Where training has faded the exits' masks out, they are left out as well: exits are of their first kind again and
    cost what they cost then. Otherwise masks stay, in the books too.

    Raises:
        FitError: masks that are half faded out, after a training that was stopped.
    """
    net = copy.deepcopy(auxiliary.net)
    if auxiliary.strength not in (0.0, 1.0):
        raise FitError(f"the exits' masks still count {auxiliary.strength:.2f}; finish the training first")
    if auxiliary.strength == 0:
        net.exits = cast("list[Exit]", nn.ModuleList([_unmasked(exit) for exit in net.exits]))
    return net.eval()


def watching(net: DynamicNet) -> DynamicNet:
    """``net`` with one more exit, which nobody asks, at its deepest map: its modules, not copies of them."""
    with evaluating(net):  # the map is looked for by running the net, which in training would move BatchNorms
        staged = with_deepest(net.staged)
    after = len(staged.stages) - 2
    stage = staged.stages[after]
    shape = tuple(stage.live_shapes[stage.tap])
    kind = "pooled" if len(shape) == 3 else "given"  # for its reduction alone
    spec = {"kind": kind, "tap": list(shape), "num_classes": net.num_classes}
    try:
        with seeded(0):
            last = build_exit(spec, after=after, name=stage.name).to(next(net.parameters()))
    except RuntimeError as error:
        raise SplitError(f"the deepest map {shape} cannot be looked at: {error}") from error
    return DynamicNet(staged, [*net.exits, last])


@torch.no_grad()
def _reduced_shapes(watch: DynamicNet) -> list[tuple[int, ...]]:
    like = next(watch.parameters())
    with evaluating(watch):
        taps, _ = watch.taps(like.new_zeros(2, *watch.staged.input_shape))
        return [tuple(exit.reduce(tap).shape[1:]) for exit, tap in zip(watch.exits, taps, strict=True)]


def _parts(exit: Exit) -> tuple[Attention | FeatureAttention, nn.Module]:
    """Mask and embedder of a masked exit."""
    gate, embedder = cast(nn.Sequential, exit.embedder)
    return cast("Attention | FeatureAttention", gate), embedder


def _masked(exit: Exit, squeeze: int | None) -> Exit:
    if exit.spec["kind"] == "masked" and not exit.spec.keys() & {"projection", "answer"}:
        return exit
    found = _built(mask_spec(exit.spec, squeeze=squeeze), exit)
    _parts(found)[1].load_state_dict(exit.embedder.state_dict())
    found.classifier.load_state_dict(exit.classifier.state_dict())
    return _counted(found.eval())


def _unmasked(exit: Exit) -> Exit:
    with seeded(0):
        found = _built(exit.spec["inner"], exit)
    found.embedder.load_state_dict(_parts(exit)[1].state_dict())
    found.classifier.load_state_dict(exit.classifier.state_dict())
    return _counted(found.eval())


def _built(spec: HeadSpec, like: Exit) -> Exit:
    return build_exit(spec, after=like.after, name=like.name).to(next(like.parameters()))


def _counted(exit: Exit) -> Exit:
    exit.macs = count_macs(exit, next(exit.parameters()).new_zeros(2, *exit.spec["tap"]))
    return exit
