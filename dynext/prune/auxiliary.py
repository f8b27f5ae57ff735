"""Exits that borrow the attention of later layers while they learn, and give it back before they are used.

``lend_attention`` puts beside each exit a module that sees later layers (`AttentionModule`) and, into the exit, a mask
that is computed from the exit's own feature. `dynext.prune.distill_attention` teaches that mask to resemble the
module's. ``detach`` takes the modules away, and the exits' masks too where training has faded them out.

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
from dynext.prune.attention_module import AttentionModule, LentModule, lent_module
from dynext.seeding import seeded
from dynext.usual_modes import in_usual_modes

Later = Literal["deepest", "next"]
"""What a module sees beside its exit's own feature: the last map of the net, or the tap of the next exit."""


class MaskedPaths(NamedTuple):
    """One exit's answers along two paths, each with a mask on the exit's feature: its own mask, and the lent one."""

    own_mask: Tensor
    """The mask ``b`` that the exit computes from its own feature, as strong as it still is."""
    lent_mask: Tensor
    """The mask ``a`` of the module that sees a later layer."""
    own_bk: Tensor
    lent_bk: Tensor


class Auxiliary(nn.Module):
    """A dynamic net with attention lent to its exits; `detach` gives the net without it.

    Attributes:
        net: the student, whose exits are of kind ``"masked"``.
        attention_modules: one beside each early exit.
        strength: how much the exits' own masks count, from 1 (fully) to 0 (not at all: they can then be left out).
        later: what the modules see beside the exit's own feature.
    """

    def __init__(self, net: DynamicNet, attention_modules: list[nn.Module], *, later: Later) -> None:
        super().__init__()
        self.net = net
        self.attention_modules = cast("list[nn.Module]", nn.ModuleList(attention_modules))
        self.later = later
        self.strength = 1.0

    def __repr__(self) -> str:
        return f"Auxiliary({len(self.attention_modules)} attention modules, later={self.later!r}, {self.net!r})"

    @torch.no_grad()
    def paths(self, x: Tensor) -> list[MaskedPaths]:
        """Masks and logits of both paths of every early exit on samples ``x [b ...]``, in evaluation."""
        return self._paths_and_final(x)[0]

    def paths_of_reduced(self, reduced_e: list[Tensor]) -> list[MaskedPaths]:
        """Both paths of every early exit, from the reduced taps of the exits and of the deepest map (see `watching`).

        Both go through the head in one batch, so that its BatchNorms see one kind of samples.
        """
        paths = []
        for e, (exit, attention_module) in enumerate(zip(self.net.exits, self.attention_modules, strict=True)):
            own, later = reduced_e[e], reduced_e[-1 if self.later == "deepest" else e + 1]
            a, b = attention_module(own, later), self._own_mask(exit, own)
            own_bk, lent_bk = exit.classifier(_parts(exit)[1](torch.cat([own * b, own * a]))).chunk(2)
            paths.append(MaskedPaths(own_mask=b, lent_mask=a, own_bk=own_bk, lent_bk=lent_bk))
        return paths

    @torch.no_grad()
    def all_exits(self, x: Tensor) -> Tensor:
        """Every exit's logits ``[b e k]`` with its own mask, in evaluation: what the net answers after `detach`."""
        with evaluating(self.net):
            taps, final = self.net.taps(x)
            early = [self._own_answer(exit, exit.reduce(tap)) for exit, tap in zip(self.net.exits, taps, strict=True)]
        return torch.stack([*early, final], dim=1)

    @torch.no_grad()
    def attached(self, x: Tensor) -> Tensor:
        """Every exit's logits ``[b e k]`` with the later layers' attention: more than an exit can know at run time."""
        paths, final = self._paths_and_final(x)
        return torch.stack([*(path.lent_bk for path in paths), final], dim=1)

    def _own_answer(self, exit: Exit, own: Tensor) -> Tensor:
        masked = own * self._own_mask(exit, own) if self.strength else own
        return exit.classifier(_parts(exit)[1](masked))

    def _own_mask(self, exit: Exit, own: Tensor) -> Tensor:
        """The exit's mask, blended with 1 by ``strength``: exactly the mask at 1, exactly 1 at 0."""
        mask = _parts(exit)[0].mask(own)
        return mask if self.strength == 1 else 1 - self.strength * (1 - mask)

    def _paths_and_final(self, x: Tensor) -> tuple[list[MaskedPaths], Tensor]:
        watch = watching(self.net)
        with evaluating(self):
            taps, final = watch.taps(x)
            reduced_e = [exit.reduce(tap) for exit, tap in zip(watch.exits, taps, strict=True)]
            return self.paths_of_reduced(reduced_e), final


@in_usual_modes
def lend_attention(
    net: DynamicNet,
    *,
    later: Later = "deepest",
    squeeze: int | None = None,
    module: LentModule = AttentionModule,
    seed: int = 0,
) -> Auxiliary:
    """A copy of ``net`` with an untrained mask in each exit, and beside each exit a module that sees a later layer.

    Heads keep what they have learned. Exits may be of any kind of ours.

    Args:
        later: what the modules see. ``"deepest"``: the last map of the net; ``"next"``: the tap of the next exit (for
            the last exit, the deepest map).
        squeeze: channels in the middle of masks and modules; half the tap's channels, at least 8, by default.
        module: makes the lent modules, `AttentionModule` or one's own (`dynext.prune.attention_module.LentModule`).

    Raises:
        FitError: no early exit, a head of one's own, an unknown value of ``later``, a ``squeeze`` below 1, or a
            cascade.
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
    own = [f"{exit.name} ({exit.spec['module']})" for exit in net.exits if "module" in exit.spec]
    if own:
        raise FitError(
            f"the exit after {own[0]} is a module of one's own, into which no mask is put, as nobody knows where its "
            f"channels stand; attach heads of ours (dx.default_heads, dx.heads)"
        )
    student = copy.deepcopy(net)
    shapes = _reduced_shapes(watching(net))
    with seeded(seed):
        exits = [_masked(exit, squeeze) for exit in student.exits]
        student.exits = cast("list[Exit]", nn.ModuleList(exits))
        attention_modules = [
            lent_module(module, shapes[e], shapes[-1 if later == "deepest" else e + 1], int(exit.spec["squeeze"]))
            for e, exit in enumerate(exits)
        ]
    like = next(student.parameters())
    student.cost = None
    return Auxiliary(student.eval(), [module.to(like) for module in attention_modules], later=later).eval()


@in_usual_modes
def detach(auxiliary: Auxiliary) -> DynamicNet:
    """The dynamic net without the modules; its logits are those of `Auxiliary.all_exits`, bit for bit.

    Where training has faded the exits' masks out, they are left out as well: exits are of their first kind again, at
    their first cost. Otherwise the masks stay, and their MACs count.

    Raises:
        FitError: masks that are only partly faded out, because training was stopped.
    """
    net = copy.deepcopy(auxiliary.net)
    if auxiliary.strength not in (0.0, 1.0):
        raise FitError(f"the exits' masks still count {auxiliary.strength:.2f}; finish the training first")
    if auxiliary.strength == 0:
        net.exits = cast("list[Exit]", nn.ModuleList([_unmasked(exit) for exit in net.exits]))
    return net.eval()


def watching(net: DynamicNet) -> DynamicNet:
    """``net`` with one more exit at its deepest map, for its tap alone; shares the net's modules instead of copying."""
    with evaluating(net):  # the map is sought by running the net, which in training would move BatchNorms
        staged = with_deepest(net.staged)
    after = len(staged.stages) - 2
    stage = staged.stages[after]
    shape = tuple(stage.live_shapes[stage.tap])
    kind = "pooled" if len(shape) == 3 else "given"  # only its reduction of the tap is used
    spec = {"kind": kind, "tap": list(shape), "num_classes": net.num_classes}
    try:
        with seeded(0):
            last = build_exit(spec, after=after, name=stage.name).to(next(net.parameters()))
    except RuntimeError as error:
        raise SplitError(f"the deepest map {shape} cannot be tapped: {error}") from error
    watched = DynamicNet(staged, [*net.exits, last])
    watched.spec = net.spec
    return watched


@torch.no_grad()
def _reduced_shapes(watch: DynamicNet) -> list[tuple[int, ...]]:
    like = next(watch.parameters())
    with evaluating(watch):
        taps, _ = watch.taps(like.new_zeros(2, *watch.staged.input_shape))
        return [tuple(exit.reduce(tap).shape[1:]) for exit, tap in zip(watch.exits, taps, strict=True)]


def _parts(exit: Exit) -> tuple[Attention | FeatureAttention, nn.Module]:
    """Mask and embedder of a masked exit."""
    mask, embedder = cast(nn.Sequential, exit.embedder)
    return cast("Attention | FeatureAttention", mask), embedder


def _masked(exit: Exit, squeeze: int | None) -> Exit:
    if exit.spec["kind"] == "masked" and not exit.spec.keys() & {"projection", "answer"}:
        return exit
    masked = _built(mask_spec(exit.spec, squeeze=squeeze), exit)
    _parts(masked)[1].load_state_dict(exit.embedder.state_dict())
    masked.classifier.load_state_dict(exit.classifier.state_dict())
    return _with_macs(masked.eval())


def _unmasked(exit: Exit) -> Exit:
    with seeded(0):
        unmasked = _built(exit.spec["inner"], exit)
    unmasked.embedder.load_state_dict(_parts(exit)[1].state_dict())
    unmasked.classifier.load_state_dict(exit.classifier.state_dict())
    return _with_macs(unmasked.eval())


def _built(spec: HeadSpec, like: Exit) -> Exit:
    return build_exit(spec, after=like.after, name=like.name).to(next(like.parameters()))


def _with_macs(exit: Exit) -> Exit:
    exit.macs = count_macs(exit, next(exit.parameters()).new_zeros(2, *exit.spec["tap"]))
    return exit
