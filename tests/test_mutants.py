"""Seeded mutations that the checks must catch: a test suite that lets one of these live proves nothing."""

import pytest
import torch
from torch import nn
from zoo import NETS

import dynext as dx
from dynext.core import collect, run
from dynext.testing import ConformanceError, check_net


def dynamic() -> tuple[dx.DynamicNet, torch.Tensor]:
    model, example = NETS["residual"]()
    staged = dx.split(model, example)
    x = torch.randn(12, *example.shape[1:], generator=torch.Generator().manual_seed(2))
    return dx.attach(staged, dx.default_heads(staged.num_classes)), x


def wrong_sign(monkeypatch: pytest.MonkeyPatch, net: dx.DynamicNet) -> None:
    step = run.Confidence.step

    class Turned(run.Confidence):
        def step(self, logits_bk, rows=None, exit=-1):
            return 1 - step(self, logits_bk, rows, exit)

    monkeypatch.setattr(run, "Confidence", Turned)


def dropped_row(monkeypatch: pytest.MonkeyPatch, net: dx.DynamicNet) -> None:
    compact = run._Books.compact
    monkeypatch.setattr(run._Books, "compact", lambda books, staying: compact(books, staying.roll(1)))


def off_by_one_exit(monkeypatch: pytest.MonkeyPatch, net: dx.DynamicNet) -> None:
    answer = run._Books.answer
    monkeypatch.setattr(run._Books, "answer", lambda books, e, logits: answer(books, max(e - 1, 0), logits))


def stale_buffer(monkeypatch: pytest.MonkeyPatch, net: dx.DynamicNet) -> None:
    next(m for m in net.exits[0].modules() if isinstance(m, nn.BatchNorm2d)).train()


def free_heads(monkeypatch: pytest.MonkeyPatch, net: dx.DynamicNet) -> None:
    for exit in net.exits:
        exit.macs = 0
    table_of = collect.table_of
    paid = tuple([100] * len(net.exits) + [0])

    def charged(net, logits, **known):
        return dx.core.table.replace(table_of(net, logits, **known), head_macs_e=paid)

    monkeypatch.setattr("dynext.testing.table_of", charged)


def forgotten_temperature(monkeypatch: pytest.MonkeyPatch, net: dx.DynamicNet) -> None:
    step = run.Confidence.step

    class Warm(run.Confidence):
        def step(self, logits_bk, rows=None, exit=-1):
            return step(self, logits_bk / 2, rows, exit)

    monkeypatch.setattr(run, "Confidence", Warm)


MUTANTS = [wrong_sign, dropped_row, off_by_one_exit, stale_buffer, free_heads, forgotten_temperature]


def test_the_original_passes() -> None:
    net, x = dynamic()
    check_net(net, x)
    assert len(MUTANTS) >= 5


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda m: m.__name__)
def test_a_mutant_is_caught(mutate, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = dynamic()
    mutate(monkeypatch, net)
    with pytest.raises(ConformanceError):
        check_net(net, x)
