"""Thresholds without a real sample: as cautious as the shift demands, and none where it is too large."""

from __future__ import annotations

import pytest
import torch
from tables import make_table
from torch import nn

from dynext.data.samples import Samples
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.limits import Limits
from dynext.policy.policy import Policy
from dynext.policy.table import simulate
from dynext.train.drift import lost_by_drift
from dynext.types import InputSpec
from dynext.zeroshot import thresholds
from dynext.zeroshot.bank import Bank
from dynext.zeroshot.shift import Shift
from dynext.zeroshot.synth.synthesize import synthesize
from dynext.zeroshot.thresholds import CAUTION, choose_cautiously, choose_unseen


@pytest.fixture
def banks(teacher: nn.Module, spec: InputSpec):
    def synthesized(kind: str, count: int) -> Bank:
        return synthesize(teacher, shape=spec.shape, n=64, seed=1, method=kind, spec=spec, progress=False)

    return synthesized


def fixed(monkeypatch: pytest.MonkeyPatch, distance: float) -> None:
    found = Shift(overshoot=1.0, where="", bn_distance=distance, max_drop=0.01)
    monkeypatch.setattr(thresholds, "estimate_shift", lambda *_, **__: found)


def test_half_of_the_loss_saves_less_and_what_is_spent_is_gone():
    table = make_table(600, noise=1.5)
    saved = [
        simulate(table, choose_cautiously([table], max_drop=0.1, **options)).saved
        for options in ({"caution": 1.0}, {"caution": 0.5}, {"caution": 1.0, "spent": 0.05}, {"spent": 0.2})
    ]
    assert saved[0] > saved[1] == saved[2] > saved[3] == 0


def test_two_kinds_are_compared_whatever_the_method(student, teacher, banks, monkeypatch) -> None:
    asked: list[str] = []

    def counted(kind: str, count: int) -> Bank:
        asked.append(kind)
        return banks(kind, count)

    fixed(monkeypatch, 0.0)
    for method in ("gaussian", "leaves"):
        choose_unseen(student, teacher, counted, method)
    assert asked == ["gaussian", "leaves", "leaves", "fitted"]


def test_a_large_shift_keeps_everybody(student: DynamicNet, teacher, banks, monkeypatch) -> None:
    fixed(monkeypatch, 2.0)
    found = choose_unseen(student, teacher, banks, "gaussian", max_drop=1.0)
    assert found.policy.threshold_e == Policy.never(3).threshold_e
    assert found.policy.basis == "teacher"
    assert found.policy.note.startswith("no exit is safe: too large a shift")
    asked_for = choose_unseen(student, teacher, banks, "gaussian", budget=0.9)
    assert asked_for.policy.threshold_e != found.policy.threshold_e
    assert "too large a shift" in asked_for.policy.note
    least = choose_unseen(student, teacher, banks, "gaussian", max_drop=1.0, when_unsafe="least")
    assert least.policy.threshold_e != found.policy.threshold_e
    assert least.policy.note.startswith("not proven: ")
    assert "too large a shift" in least.policy.note


@pytest.mark.parametrize(("distance", "caution"), [(0.0, CAUTION), (0.9, 0.1)])
def test_the_farther_from_the_training_set_the_less_may_be_lost(
    student, teacher, banks, monkeypatch, distance: float, caution: float
) -> None:
    fixed(monkeypatch, distance)
    asked: list[float] = []

    def choose(_, limits: Limits, *, overhead: float, **__) -> Policy:
        asked.append(limits.max_drop)
        assert overhead == 0
        return Policy.never(3)

    monkeypatch.setattr(thresholds, "choose_within", choose)
    found = choose_unseen(student, teacher, banks, "gaussian", max_drop=0.02)
    assert asked == [pytest.approx(0.02 * caution)]
    assert f"BatchNorm distance {distance:.2f}" in found.policy.note


def test_what_a_trained_trunk_has_lost_is_weighed_by_the_teacher(
    student: DynamicNet, teacher: nn.Module, spec: InputSpec
) -> None:
    rows = Samples(pixels=torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8), spec=spec)
    assert lost_by_drift(student, teacher, rows) == 0
    with torch.no_grad():
        student.staged.stages[0].get_parameter("body.conv1.weight").add_(0.3)
        x = spec.normalize(rows.pixels)
        probability_nk, answer_n = teacher(x).softmax(1), student(x).argmax(1)
    expected = (probability_nk.amax(1) - probability_nk[torch.arange(40), answer_n]).mean()
    assert lost_by_drift(student, teacher, rows) == pytest.approx(float(expected), rel=1e-4)
    assert expected > 0
