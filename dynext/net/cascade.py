"""Exits that build on the exits before them: a head becomes a stage, and what it says one more live tensor.

Runner, tables, policies and export need not know: gathering survivors takes the tensor along like any other, and an
exit proper then reads its answer off and costs nothing. A cascade needs all its heads, also those of exits that a
policy switches off, and so their MACs count as the stages' own, in the whole net's too.

Shapes: b samples, k classes. There are e exits, numbered from 0.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynext.errors import SplitError
from dynext.graph import Stage, StagedNet
from dynext.graph.macs import count_macs
from dynext.graph.stage import OUTPUT
from dynext.modules.exits import Exit, build_exit
from dynext.net.dynamic_net import DynamicNet
from dynext.seeding import seeded

Rule = Literal["stack", "inline", "boost", "mean", "surest"]
"""How exits build on those before them; `cascade` says what each does."""

TOGETHER = ("mean", "surest")
"""Rules by which the exits answer together where none was sure enough alone."""

BOOST = 0.5


class Link(nn.Module):
    """A head with the logits of the heads before it at hand; this one does not look at them."""

    def __init__(self, exit: Exit, before: int) -> None:
        super().__init__()
        self.exit, self.before = exit, before

    def own(self, reduced: Tensor, said: Sequence[Tensor]) -> Tensor:
        """The head's logits ``[b k]`` from the reduced tap and what was ``said`` before."""
        return self.exit.head(reduced)

    def answer(self, said: Sequence[Tensor]) -> Tensor:
        """What the exit answers ``[b k]``, given all that was said, its own logits last."""
        return said[-1]

    def forward(self, tap: Tensor, *said: Tensor) -> tuple[Tensor, Tensor]:
        own = self.own(self.exit.reduce(tap), said)
        return own, self.answer((*said, own))


class Stacked(Link):
    """Zero Time Waste: sees what the head before said, and answers as a weighted geometric mean of all so far.

    The former logits are detached and LayerNorm'd; a linear layer on them, added, is the head's last layer on both side
    by side. The answer is ``log p = mean_i exp(w_i) log p_i + b``; no gradient of it reaches a head.

    Source: Wolczyk et al., NeurIPS 2021, arXiv:2106.05409, section 3.
    """

    def __init__(self, exit: Exit, before: int, num_classes: int) -> None:
        super().__init__(exit, before)
        self.norm = nn.LayerNorm(num_classes)
        self.recycle = nn.Linear(num_classes, num_classes, bias=False)
        self.weight = nn.Parameter(torch.zeros(before + 1))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def own(self, reduced: Tensor, said: Sequence[Tensor]) -> Tensor:
        logits = self.exit.head(reduced)
        return logits + self.recycle(self.norm(said[-1].detach())) if said else logits

    def answer(self, said: Sequence[Tensor]) -> Tensor:
        log_p = torch.stack([F.log_softmax(logits.detach(), dim=-1) for logits in said])
        return (self.weight.exp()[:, None, None] * log_p).mean(0) + self.bias


class Inline(Link):
    """IMTA's inline collaboration: what the head before said, widened to the embedding's size, joins the embedding.

    A linear layer on it, added, is the head's last layer on both side by side.

    Source: Li et al., ICCV 2019, arXiv:1908.06294, section 3.3.
    """

    def __init__(self, exit: Exit, before: int, num_classes: int) -> None:
        super().__init__(exit, before)
        width = cast(nn.Linear, exit.classifier).in_features
        self.widen = nn.Sequential(nn.Linear(num_classes, width), nn.BatchNorm1d(width), nn.ReLU())
        self.recycle = nn.Linear(width, num_classes, bias=False)

    def own(self, reduced: Tensor, said: Sequence[Tensor]) -> Tensor:
        logits = self.exit.head(reduced)
        return logits + self.recycle(self.widen(said[-1])) if said else logits


class Boosted(Link):
    """BoostNet: the head corrects half of what was said before, ``F_n = b_n + F_{n-1} / 2``."""

    def own(self, reduced: Tensor, said: Sequence[Tensor]) -> Tensor:
        return boost(self.exit.head(reduced), said)


def boost(logits: Tensor, said: Sequence[Tensor]) -> Tensor:
    """``F_n = b_n + stopgrad(F_{n-1}) / 2``: what is said with what was said last.

    Source: BoostNet, Yu et al., AAAI 2023, arXiv:2211.16726.
    """
    return logits + BOOST * said[-1].detach() if said else logits


def together(said: Sequence[Tensor], rule: str) -> Tensor:
    """One answer ``[b k]`` of all exits: the mean of their logits, or for each sample the logits of the surest exit."""
    logits_ebk = torch.stack(tuple(said))
    if rule == "mean":
        return logits_ebk.mean(0)
    surest_b = logits_ebk.softmax(-1).amax(-1).argmax(0)
    return logits_ebk.gather(0, surest_b[None, :, None].expand(1, -1, logits_ebk.shape[-1]))[0]


def cascade(net: DynamicNet, rule: Rule, *, seed: int = 0) -> DynamicNet:
    """A copy of ``net`` in which each exit builds on those before it; what it takes beyond the heads is untrained.

    ``"stack"`` (Zero Time Waste) and ``"inline"`` (IMTA) hand each head what the one before said; the full net's own
    output stays as it is. ``"boost"`` (BoostNet) adds to each answer half of the one before, the full net's included.
    ``"mean"`` (SCAN) and ``"surest"`` (Shallow-Deep) leave the exits alone and put an answer of all together behind the
    full net's own, which becomes one more exit: who is sure at none of them gets it.

    ``net(x)`` is the last answer, and ``trunk_macs_e`` counts heads, as the cascade runs them all.

    Raises:
        SplitError: no early exit, gates, a cascade already, or no such rule.
    """
    if net.gates is not None:
        raise SplitError("stages of a cascade are not skipped, and this net has gates; give it without them")
    if rule not in get_args(Rule) or not len(net.exits) or net.cascade is not None:
        raise SplitError(
            f"rule {rule!r} on a net with {len(net.exits)} early exits, {'already' if net.cascade else 'not yet'} a "
            f"cascade; give one of {', '.join(get_args(Rule))} and a net with plain exits"
        )
    net = copy.deepcopy(net)
    like = next(net.parameters())
    with seeded(seed):
        links = [_link(exit, e, rule, net.num_classes).to(like).eval() for e, exit in enumerate(net.exits)]
    made = _Chain(net, rule, links)
    found = DynamicNet(made.staged(), made.exits).eval()
    found.staged.shrunk = net.staged.shrunk
    found.cascade = {
        "rule": rule,
        "after": list(net.staged.cuts),
        "heads": [{"after": exit.after, "head": exit.spec} for exit in net.exits],
    }
    return found


def links_of(net: DynamicNet) -> list[Link]:
    """The heads of a net, be it a cascade or not, ready to be trained on cached features."""
    found = [stage.body.link for stage in net.staged.stages if isinstance(stage.body, _Linked)]
    return found or [Link(exit, e) for e, exit in enumerate(net.exits)]


def _link(exit: Exit, before: int, rule: str, num_classes: int) -> Link:
    if rule == "stack":
        return Stacked(exit, before, num_classes)
    if rule == "inline":
        return Inline(exit, before, num_classes)
    return Boosted(exit, before) if rule == "boost" else Link(exit, before)


class _Beside(nn.Module):
    """A stage past which ``said`` tensors are carried; an answer behind them has been read off."""

    def __init__(self, stage: Stage, takes: int, said: int) -> None:
        super().__init__()
        self.stage, self.takes, self.said = stage, takes, said

    def forward(self, *live: Tensor) -> tuple[Tensor, ...]:
        return (*self.stage(*live[: self.takes]), *live[self.takes : self.takes + self.said])


class _Linked(nn.Module):
    """A head as a stage: it gives the live tensors on, then all that was said, then the exit's answer."""

    def __init__(self, link: Link, takes: int, tap: int) -> None:
        super().__init__()
        self.link, self.takes, self.tap = link, takes, tap

    def forward(self, *live: Tensor) -> tuple[Tensor, ...]:
        said = live[self.takes :]
        own, answer = self.link(live[self.tap], *said)
        return (*live[: self.takes], *said, own, answer)


class _Ending(nn.Module):
    """The last stage; ``"boost"`` adds half of what was said last, `TOGETHER` keeps all that was said."""

    def __init__(self, stage: Stage, takes: int, said: int, rule: str) -> None:
        super().__init__()
        self.stage, self.takes, self.said, self.rule = stage, takes, said, rule

    def forward(self, *live: Tensor) -> tuple[Tensor, ...]:
        said = live[self.takes : self.takes + self.said]
        (logits,) = self.stage(*live[: self.takes])
        if self.rule in TOGETHER:
            return (*said, logits)
        return (boost(logits, said) if self.rule == "boost" else logits,)


class _Together(nn.Module):
    def __init__(self, rule: str) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, *said: Tensor) -> tuple[Tensor, ...]:
        return (together(said, self.rule),)


class _Chain:
    """The stages of a cascade as they are put together, with the live tensors' shapes."""

    def __init__(self, net: DynamicNet, rule: str, links: Sequence[Link]) -> None:
        self.net, self.rule, self.links = net, rule, links
        self.like = next(net.parameters())
        self.stages: list[Stage] = []
        self.exits: list[Exit] = []
        self.said = 0
        self.live_in = 1
        for s, stage in enumerate(net.staged.stages[:-1]):
            self._pass(stage)
            for exit, link in zip(net.exits, links, strict=True):
                if exit.after == s:
                    self._hang(stage, link)
        self._end(net.staged.stages[-1])

    def staged(self) -> StagedNet:
        old = self.net.staged
        made = StagedNet(
            self.stages, input_shape=old.input_shape, num_classes=old.num_classes, granularity=old.granularity
        )
        made.cosine = old.cosine
        return made

    def _add(self, body: nn.Module, name: str, own: Sequence[tuple[int, ...]], said: int, tap: int, macs: int) -> None:
        shapes = [*own, *[(self.net.num_classes,)] * said]
        live = [(shape, self.like.dtype) for shape in shapes]
        self.stages.append(
            Stage(body, name=name, num_live_in=self.live_in, live=live, tap=tap, skippable=False, macs=macs)
        )
        self.live_in = len(live)

    def _pass(self, stage: Stage) -> None:
        body = _Beside(stage, stage.num_live_in, self.said)
        self._add(body, stage.name, stage.live_shapes, self.said, stage.tap, stage.macs)

    def _hang(self, stage: Stage, link: Link) -> None:
        body = _Linked(link, stage.num_live_out, stage.tap)
        tap = self.like.new_zeros(2, *stage.live_shapes[stage.tap])
        macs = count_macs(link, tap, *[self.like.new_zeros(2, self.net.num_classes)] * self.said)
        self.said += 1
        last = stage.num_live_out + self.said
        self._add(body, f"{stage.name}, exit", stage.live_shapes, self.said + 1, last, macs)
        self._read(stage.name)

    def _read(self, name: str) -> None:
        """An exit that reads off what the stage before it has put last."""
        k = self.net.num_classes
        spec: dict[str, Any] = {"kind": "given", "tap": [k], "num_classes": k}
        self.exits.append(build_exit(spec, after=len(self.stages) - 1, name=name).eval())

    def _end(self, stage: Stage) -> None:
        body = _Ending(stage, stage.num_live_in, self.said, self.rule)
        if self.rule not in TOGETHER:
            self._add(body, OUTPUT, stage.live_shapes, 0, 0, stage.macs)
            return
        self._add(body, "deepest", (), self.said + 1, self.said, stage.macs)
        self._read("deepest")
        self._add(_Together(self.rule), OUTPUT, stage.live_shapes, 0, 0, 0)
