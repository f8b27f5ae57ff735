"""A teacher, and a student's exits if there are some, looking at the same samples.

Shapes: b samples, e exits (the early ones), k classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynext.errors import SourceError
from dynext.modules.modes import evaluating
from dynext.net.dynamic_net import DynamicNet
from dynext.net.features import same_function
from dynext.seeding import generator
from dynext.types import InputSpec
from dynext.zeroshot.synth.bn_statistics import answer_and_bn_distance, as_input, has_batch_norm

SAME = 1e-4
"""Answers that differ by less than this are one net's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """What was found about ``b`` samples, differentiable in them."""

    answer_bk: Tensor
    """The teacher's logits."""
    distance: Tensor | None
    """`bn_distance`; ``None`` for a teacher without BatchNorm."""
    taps: list[Tensor]
    """What each of the student's exits sees; nothing without a student."""


class TeacherAndStudent:
    """Looks at samples through the teacher and, if given, through the trunk of ``against``.

    Where that trunk still is the teacher (frozen heads), one pass does for both. Nothing is changed in either.
    """

    def __init__(self, teacher: nn.Module, against: DynamicNet | None = None) -> None:
        self.teacher, self.against = teacher, against
        self._measured = has_batch_norm(teacher)
        self._one_trunk = against is not None and same_function(against, teacher)

    def __call__(self, x: Tensor) -> Observed:
        """What teacher and student find about ``x [b ...]``, both in eval."""
        if self.against is not None and self._one_trunk:
            trunk = _Trunk(self.against)
            answer, distance = self._answer(trunk, x)
            return Observed(answer_bk=answer, distance=distance, taps=trunk.seen)
        answer, distance = self._answer(self.teacher, x)
        if self.against is None:
            return Observed(answer_bk=answer, distance=distance, taps=[])
        with evaluating(self.against):
            return Observed(answer_bk=answer, distance=distance, taps=self.against.taps(x)[0])

    def _answer(self, net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if self._measured:
            return answer_and_bn_distance(net, x)
        with evaluating(net):
            return net(x), None

    def exits(self, taps: list[Tensor]) -> Tensor:
        """The student's early exits' logits ``[b e k]``."""
        if self.against is None:
            raise SourceError("there is no student whose exits could answer; give against=a dynamic net")
        with evaluating(self.against):
            return torch.stack([exit(tap) for exit, tap in zip(self.against.exits, taps, strict=True)], dim=1)


class _Trunk(nn.Module):
    """A dynamic net's stages alone, which remember what its exits would see. The exits themselves are not run."""

    def __init__(self, net: DynamicNet) -> None:
        super().__init__()
        self.net = net
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen, final = self.net.taps(x)
        return final


def check_student(teacher: nn.Module, against: DynamicNet, spec: InputSpec) -> None:
    """That ``against`` has exits which can disagree with ``teacher``.

    Raises:
        SourceError: no dynamic net, none for these samples or classes, one without exits, or one whose exits all answer
            what the teacher answers: no sample would then be better than another, and the term always 0.
    """
    if not isinstance(against, DynamicNet):
        raise SourceError(
            f"against={type(against).__name__} is no dynamic net; give the one whose exits are to be taught (dx.attach)"
        )
    if not len(against.exits):
        raise SourceError("the net given as against= has no early exit that could disagree; attach some (dx.attach)")
    if against.staged.input_shape != spec.shape:
        raise SourceError(
            f"against= expects samples {against.staged.input_shape}, samples of {spec.shape} are synthesized"
        )
    x = as_input(teacher, torch.randn(4, *spec.shape, generator=generator(0)))
    with torch.no_grad(), evaluating(teacher), evaluating(against):
        answer_bk, exits_bek = teacher(x), against.all_exits(x)[:, :-1]
    if exits_bek.shape[-1] != answer_bk.shape[-1]:
        raise SourceError(f"against= knows {exits_bek.shape[-1]} classes, the teacher {answer_bk.shape[-1]}")
    if torch.allclose(exits_bek, answer_bk[:, None].expand_as(exits_bek), rtol=SAME, atol=SAME):
        raise SourceError(
            "every exit of against= answers just what the teacher answers, so that no sample tells them apart; "
            "give the student, not the teacher"
        )
