"""Exits that build on the exits before them: a head becomes a stage, and its logits one more live tensor.

Runner, tables, policies and export need no case of their own: gathering survivors takes the tensor along like any
other, and the exit proper then reads its answer off and costs nothing. A cascade needs all its heads, also those of
exits that a policy switches off, and so their MACs count as the stages' own, in the whole net's too.

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
from dynext.graph.stage import OUTPUT, LiveTensors
from dynext.modules.exit_parts import NO_CLASSIFIER
from dynext.modules.exits import Exit, build_exit
from dynext.modules.own_parts import own_macs
from dynext.net.dynamic_net import DynamicNet
from dynext.seeding import seeded

CascadeRule = Literal["stack", "inline", "boost", "mean", "surest"]
"""How exits build on those before them; `cascade` says what each does."""

TOGETHER = ("mean", "surest")
"""Rules by which the exits answer together where none was sure enough alone."""

BOOST = 0.5
"""Share of the former answer that `boost` adds."""


class Link(nn.Module):
    """A head that is handed the logits of the heads before it; this one does not use them.

    In ``own`` and ``forward``, ``earlier`` are the logits ``[b k]`` of the heads before it, in order.
    """

    def __init__(self, exit: Exit, before: int) -> None:
        super().__init__()
        self.exit, self.before = exit, before

    def own(self, reduced: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """The head's logits ``[b k]`` from the reduced tap and the earlier heads' logits."""
        return self.exit.head(reduced)

    def answer(self, so_far: Sequence[Tensor]) -> Tensor:
        """What the exit answers ``[b k]``, given the logits of all heads so far, its own last."""
        return so_far[-1]

    def forward(self, tap: Tensor, *earlier: Tensor) -> tuple[Tensor, Tensor]:
        """The head's own logits, and what the exit answers."""
        own = self.own(self.exit.reduce(tap), earlier)
        return own, self.answer((*earlier, own))


class Stacked(Link):
    """Zero Time Waste: sees the logits of the head before, and answers with a weighted geometric mean of all so far.

    Those logits are detached and go through a LayerNorm and a linear layer whose output is added to the head's: the
    same as if the head's last layer saw both side by side. The answer is ``log p = mean_i exp(w_i) log p_i + b``; no
    gradient of it reaches a head.

    Source: Wolczyk et al., NeurIPS 2021, arXiv:2106.05409, section 3.
    """

    def __init__(self, exit: Exit, before: int, num_classes: int) -> None:
        super().__init__(exit, before)
        self.norm = nn.LayerNorm(num_classes)
        self.recycle = nn.Linear(num_classes, num_classes, bias=False)
        self.weight = nn.Parameter(torch.zeros(before + 1))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def own(self, reduced: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        logits = self.exit.head(reduced)
        return logits + self.recycle(self.norm(earlier[-1].detach())) if earlier else logits

    def answer(self, so_far: Sequence[Tensor]) -> Tensor:
        log_p = torch.stack([F.log_softmax(logits.detach(), dim=-1) for logits in so_far])
        return (self.weight.exp()[:, None, None] * log_p).mean(0) + self.bias


class Inline(Link):
    """IMTA's inline collaboration: the logits of the head before, widened to the embedding's size, join the embedding.

    They go through a linear layer whose output is added to the head's: the same as if the head's last layer saw both
    side by side.

    Source: Li et al., ICCV 2019, arXiv:1908.06294, section 3.3.
    """

    def __init__(self, exit: Exit, before: int, num_classes: int) -> None:
        super().__init__(exit, before)
        if not exit.embeds:
            raise SplitError(NO_CLASSIFIER.format(name=exit.spec["module"]))
        width = cast(nn.Linear, exit.classifier).in_features
        self.widen = nn.Sequential(nn.Linear(num_classes, width), nn.BatchNorm1d(width), nn.ReLU())
        self.recycle = nn.Linear(width, num_classes, bias=False)

    def own(self, reduced: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        logits = self.exit.head(reduced)
        return logits + self.recycle(self.widen(earlier[-1])) if earlier else logits


class Boosted(Link):
    """BoostNet: the head corrects half of the answer before it, ``F_n = b_n + F_{n-1} / 2``."""

    def own(self, reduced: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        return boost(self.exit.head(reduced), earlier)


def boost(logits: Tensor, earlier: Sequence[Tensor]) -> Tensor:
    """``F_n = b_n + stopgrad(F_{n-1}) / 2``: a head's ``logits [b k]`` with the last of the earlier answers.

    Source: BoostNet, Yu et al., AAAI 2023, arXiv:2211.16726.
    """
    return logits + BOOST * earlier[-1].detach() if earlier else logits


def together(logits_e: Sequence[Tensor], rule: str) -> Tensor:
    """One answer ``[b k]`` of all exits: the mean of their logits, or for each sample the logits of the surest exit."""
    logits_ebk = torch.stack(tuple(logits_e))
    if rule == "mean":
        return logits_ebk.mean(0)
    surest_b = logits_ebk.softmax(-1).amax(-1).argmax(0)
    return logits_ebk.gather(0, surest_b[None, :, None].expand(1, -1, logits_ebk.shape[-1]))[0]


def cascade(net: DynamicNet, rule: CascadeRule, *, seed: int = 0) -> DynamicNet:
    """A copy of ``net`` in which each exit builds on those before it; layers added for this are untrained.

    ``"stack"`` (Zero Time Waste) and ``"inline"`` (IMTA) hand each head the logits of the head before it; the full
    net's own output stays as it is. ``"boost"`` (BoostNet) adds half of the answer before to each answer, the full
    net's included. ``"mean"`` (SCAN) and ``"surest"`` (Shallow-Deep) leave the exits alone and put an answer of all
    together behind the full net's own, which becomes one more exit: samples of which none of them is sure get it.

    ``net(x)`` is the last answer, and ``trunk_macs_e`` counts heads, as the cascade runs them all.

    Raises:
        SplitError: no early exit, gates, a cascade already, no such rule, or, for ``"inline"``, a head without an
            embedding.
    """
    if net.gates is not None:
        raise SplitError("stages of a cascade are not skipped, and this net has gates; give it without them")
    if rule not in get_args(CascadeRule) or not len(net.exits) or net.cascade is not None:
        raise SplitError(
            f"rule {rule!r} on a net with {len(net.exits)} early exits, {'already' if net.cascade else 'not yet'} a "
            f"cascade; give one of {', '.join(get_args(CascadeRule))} and a net with plain exits"
        )
    net = copy.deepcopy(net)
    like = next(net.parameters())
    with seeded(seed):
        links = [_link(exit, e, rule, net.num_classes).to(like).eval() for e, exit in enumerate(net.exits)]
    chain = _Chain(net, rule, links)
    cascaded = DynamicNet(chain.staged(), chain.exits).eval()
    cascaded.seen = net.seen
    cascaded.staged.shrunk = net.staged.shrunk
    cascaded.spec = net.spec
    cascaded.cascade = {
        "rule": rule,
        "after": list(net.staged.cuts),
        "heads": [{"after": exit.after, "head": exit.spec} for exit in net.exits],
    }
    return cascaded


def links_of(net: DynamicNet) -> list[Link]:
    """The heads of a net, be it a cascade or not, ready to be trained on cached features."""
    links = [stage.body.link for stage in net.staged.stages if isinstance(stage.body, _Linked)]
    return links or [Link(exit, e) for e, exit in enumerate(net.exits)]


def _link(exit: Exit, before: int, rule: str, num_classes: int) -> Link:
    if rule == "stack":
        return Stacked(exit, before, num_classes)
    if rule == "inline":
        return Inline(exit, before, num_classes)
    return Boosted(exit, before) if rule == "boost" else Link(exit, before)


class _Beside(nn.Module):
    """A stage of ``num_live`` live tensors past which the logits of ``num_heads`` heads are carried. What lies behind
    them, an exit's answer, has been read off and is dropped.
    """

    def __init__(self, stage: Stage, num_live: int, num_heads: int) -> None:
        super().__init__()
        self.stage, self.num_live, self.num_heads = stage, num_live, num_heads

    def forward(self, *live: Tensor) -> LiveTensors:
        return (*self.stage(*live[: self.num_live]), *live[self.num_live : self.num_live + self.num_heads])


class _Linked(nn.Module):
    """A head as a stage: it gives the live tensors on, then all heads' logits so far, then the exit's answer."""

    def __init__(self, link: Link, num_live: int, tap: int) -> None:
        super().__init__()
        self.link, self.num_live, self.tap = link, num_live, tap

    def forward(self, *live: Tensor) -> LiveTensors:
        earlier = live[self.num_live :]
        own, answer = self.link(live[self.tap], *earlier)
        return (*live[: self.num_live], *earlier, own, answer)


class _Ending(nn.Module):
    """The last stage; ``"boost"`` adds half of the last head's answer, rules of `TOGETHER` keep all heads' logits."""

    def __init__(self, stage: Stage, num_live: int, num_heads: int, rule: str) -> None:
        super().__init__()
        self.stage, self.num_live, self.num_heads, self.rule = stage, num_live, num_heads, rule

    def forward(self, *live: Tensor) -> LiveTensors:
        earlier = live[self.num_live : self.num_live + self.num_heads]
        (logits,) = self.stage(*live[: self.num_live])
        if self.rule in TOGETHER:
            return (*earlier, logits)
        return (boost(logits, earlier) if self.rule == "boost" else logits,)


class _Together(nn.Module):
    def __init__(self, rule: str) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, *logits_e: Tensor) -> LiveTensors:
        return (together(logits_e, self.rule),)


class _Chain:
    """The stages of a cascade as they are put together, with the live tensors' shapes."""

    def __init__(self, net: DynamicNet, rule: str, links: Sequence[Link]) -> None:
        self.net, self.rule = net, rule
        self.like = next(net.parameters())
        self.stages: list[Stage] = []
        self.exits: list[Exit] = []
        self.num_heads = 0
        self.num_live_in = 1
        for s, stage in enumerate(net.staged.stages[:-1]):
            self._add_stage(stage)
            for exit, link in zip(net.exits, links, strict=True):
                if exit.after == s:
                    self._add_head(stage, link)
        self._add_last(net.staged.stages[-1])

    def staged(self) -> StagedNet:
        old = self.net.staged
        staged = StagedNet(
            self.stages, input_shape=old.input_shape, num_classes=old.num_classes, granularity=old.granularity
        )
        staged.cosine = old.cosine
        return staged

    def _add(
        self, body: nn.Module, name: str, own: Sequence[tuple[int, ...]], num_logits: int, *, tap: int, macs: int
    ) -> None:
        """A stage that gives tensors of the shapes ``own``, then as many logits."""
        shapes = [*own, *[(self.net.num_classes,)] * num_logits]
        live = [(shape, self.like.dtype) for shape in shapes]
        self.stages.append(
            Stage(body, name=name, num_live_in=self.num_live_in, live=live, tap=tap, skippable=False, macs=macs)
        )
        self.num_live_in = len(live)

    def _add_stage(self, stage: Stage) -> None:
        body = _Beside(stage, stage.num_live_in, self.num_heads)
        self._add(body, stage.name, stage.live_shapes, self.num_heads, tap=stage.tap, macs=stage.macs)

    def _add_head(self, stage: Stage, link: Link) -> None:
        body = _Linked(link, stage.num_live_out, stage.tap)
        tap = self.like.new_zeros(2, *stage.live_shapes[stage.tap])
        macs = count_macs(link, tap, *[self.like.new_zeros(2, self.net.num_classes)] * self.num_heads)
        macs = macs if link.exit.own is None else own_macs(macs, link)
        self.num_heads += 1
        answer = stage.num_live_out + self.num_heads
        self._add(body, f"{stage.name}, exit", stage.live_shapes, self.num_heads + 1, tap=answer, macs=macs)
        self._add_exit(stage.name)

    def _add_exit(self, name: str) -> None:
        """An exit that reads off what the stage before it has put last."""
        k = self.net.num_classes
        spec: dict[str, Any] = {"kind": "given", "tap": [k], "num_classes": k}
        self.exits.append(build_exit(spec, after=len(self.stages) - 1, name=name).eval())

    def _add_last(self, stage: Stage) -> None:
        body = _Ending(stage, stage.num_live_in, self.num_heads, self.rule)
        if self.rule not in TOGETHER:
            self._add(body, OUTPUT, stage.live_shapes, 0, tap=0, macs=stage.macs)
            return
        self._add(body, "deepest", (), self.num_heads + 1, tap=self.num_heads, macs=stage.macs)
        self._add_exit("deepest")
        self._add(_Together(self.rule), OUTPUT, stage.live_shapes, 0, tap=0, macs=0)
