"""Which parameters an exit's task owns, which it shares with other exits, and which of them it adapts.

Meta-learning usually supposes that all tasks share one parameter space. Exits do not: each has a head of its own, and
shares the trunk up to its tap with every exit behind it. What is used is read off the graph that autograd builds.

Shapes: e exits, numbered from 0, the last is the full net.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dynext.brief import short_repr
from dynext.errors import FitError
from dynext.meta.functional import Learner, called_with
from dynext.meta.prototypes import classifier_of
from dynext.modules.modes import evaluating
from dynext.net.dynamic_net import DynamicNet
from dynext.usual_modes import in_usual_modes

Adapts = Literal["head", "classifier", "owned", "used"]
"""What the inner loop changes: an exit's head (of the last exit: the net's last stage), its last linear layer alone
(ANIL), all that no other exit uses, or all that it uses (MAML)."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The parameters of one task, by their names in the net: ``owns`` and ``shares`` together are all that it uses."""

    exits: tuple[int, ...]
    owns: tuple[str, ...]
    """Used by no exit outside the task."""
    shares: tuple[str, ...]
    adapts: tuple[str, ...]
    """What its inner loop changes."""


@dataclass(frozen=True, kw_only=True)
class Ownership:
    """Every task's claim on one net. ``print`` shows it as a table."""

    __repr__ = short_repr

    claims: tuple[Claim, ...]
    sizes: dict[str, int]
    """Numbers in each parameter."""
    exit_names: tuple[str, ...]

    def __str__(self) -> str:
        lines = [("task", "exits", "owns", "shares", "adapts", "of the net")]
        whole = sum(self.sizes.values())
        for t, claim in enumerate(self.claims):
            used, adapted = self._count((*claim.owns, *claim.shares)), self._count(claim.adapts)
            names = ", ".join(f"{e} ({self.exit_names[e]})" for e in claim.exits)
            share = f"uses {used / whole:.1%}, adapts {adapted / whole:.1%}"
            lines.append(
                (str(t), names, f"{self._count(claim.owns):,}", f"{self._count(claim.shares):,}", f"{adapted:,}", share)
            )
        return _aligned(lines)

    def _count(self, names: Iterable[str]) -> int:
        return sum(self.sizes[name] for name in names)


@in_usual_modes
def ownership(net: DynamicNet, exits: Sequence[Sequence[int]] | None = None, *, adapts: Adapts = "head") -> Ownership:
    """Who owns, shares and adapts what.

    Args:
        exits: the exits of each task, -1 is the last; one task an exit without it.

    Raises:
        FitError: no such exit, an exit in two tasks or twice in one, a cascade, or ``adapts`` that is none of `Adapts`.
    """
    if adapts not in get_args(Adapts):
        raise FitError(f"adapts={adapts!r}; give one of {', '.join(get_args(Adapts))}")
    groups = checked_exits(net, exits)
    used_e = [used(net, e) for e in range(net.num_exits)]
    claims = tuple(_claim(net, group, used_e, adapts) for group in groups)
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    return Ownership(claims=claims, sizes=sizes, exit_names=net.exit_names)


def checked_exits(net: DynamicNet, exits: Sequence[Sequence[int]] | None) -> tuple[tuple[int, ...], ...]:
    """The exits of each task, counted from 0; one task an exit without any."""
    if net.cascade is not None:
        raise FitError(
            f"the net is a cascade (rule {net.cascade['rule']!r}), whose exits build on each other; "
            f"give the one with plain exits that it was made of"
        )
    if exits is None:
        return tuple((e,) for e in range(net.num_exits))
    if any(isinstance(group, int) for group in exits):
        raise FitError(f"exits={list(exits)}; give each task its own list of exits, such as [[0], [1], [-1]]")
    flat = [e for group in exits for e in group]
    if not flat or any(not len(group) for group in exits):
        raise FitError("a task without an exit; give each task one or more, such as exits=[[0], [1], [-1]]")
    wrong = [e for e in flat if not -net.num_exits <= e < net.num_exits]
    if wrong:
        raise FitError(f"exit {wrong[0]} of a net with {net.num_exits}; give 0 to {net.num_exits - 1}, or -1")
    counted = tuple(tuple(sorted(e % net.num_exits for e in group)) for group in exits)
    doubled = sorted({e for e in flat if sum((e % net.num_exits) in group for group in counted) > 1})
    if doubled or sum(map(len, counted)) != len({e for group in counted for e in group}):
        raise FitError(f"exits {list(map(list, exits))}: one stands twice; each exit belongs to one task")
    return counted


def used(net: DynamicNet, exit: int) -> tuple[str, ...]:
    """Names of the parameters that the logits of ``exit`` depend on."""
    learner = Learner(net, (exit,))
    like = next(net.parameters())
    leaves = {name: p.detach().requires_grad_() for name, p in learner.named_parameters()}
    x = torch.zeros(2, *net.staged.input_shape, dtype=like.dtype, device=like.device)
    with torch.enable_grad(), evaluating(net):
        (logits,) = called_with(learner, leaves, (x,))
        grads = torch.autograd.grad(logits.sum(), list(leaves.values()), allow_unused=True)
    depends = {name for name, grad in zip(leaves, grads, strict=True) if grad is not None}
    there = {p for name, p in learner.named_parameters() if name in depends}
    return tuple(name for name, p in net.named_parameters() if p in there)


def _claim(net: DynamicNet, exits: tuple[int, ...], used_e: Sequence[Sequence[str]], adapts: Adapts) -> Claim:
    mine = {name for e in exits for name in used_e[e]}
    others = {name for e in range(net.num_exits) if e not in exits for name in used_e[e]}
    ordered = [name for name in dict(net.named_parameters()) if name in mine]
    owns = tuple(name for name in ordered if name not in others)
    if adapts == "used":
        changed = tuple(ordered)
    elif adapts == "owned":
        changed = owns
    else:
        inside = {p for e in exits for part in _parts(net, e, adapts) for p in part.parameters()}
        changed = tuple(name for name, p in net.named_parameters() if p in inside and name in mine)
    if not changed:
        raise FitError(f"exits {exits} have no parameter to adapt with adapts={adapts!r}; give 'used'")
    return Claim(exits=exits, owns=owns, shares=tuple(n for n in ordered if n in others), adapts=changed)


def _parts(net: DynamicNet, exit: int, adapts: Adapts) -> list[nn.Module]:
    """What is adapted at one exit: its head or its last linear layer."""
    if exit < net.num_exits - 1:
        return [net.exits[exit].classifier if adapts == "classifier" else net.exits[exit]]
    return [classifier_of(net, -1) if adapts == "classifier" else net.staged.stages[-1]]


def by_name(net: DynamicNet, names: Iterable[str]) -> dict[str, Tensor]:
    """The parameters of these names."""
    there = dict(net.named_parameters())
    return {name: there[name] for name in names}


def _aligned(lines: Sequence[tuple[str, ...]]) -> str:
    """Text columns left, numbers right."""
    widths = [max(len(line[c]) for line in lines) for c in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if c in (1, 5) else cell.rjust(w)
            for c, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
