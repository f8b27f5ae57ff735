"""Seeded mutations that the checks must catch: a test suite that lets one of these live proves nothing."""

from dataclasses import replace

import pytest
import torch
from gated_nets import LEARNED, gated_net, samples_for
from torch import nn
from zoo import NETS

import dynext as dx
from dynext.net import collect
from dynext.runtime import engine as run
from dynext.runtime import skipping as skip
from dynext.testing import ConformanceError, check_gates, check_net


def dynamic() -> tuple[dx.DynamicNet, torch.Tensor]:
    model, example = NETS["residual"]()
    staged = dx.split(model, example)
    x = torch.randn(12, *example.shape[1:], generator=torch.Generator().manual_seed(2))
    # Fresh deeper heads say nearly the same of every sample, and equal confidences tell no mutant apart.
    return dx.attach(staged, dx.default_heads(staged.num_classes, separable=0)), x


def wrong_sign(monkeypatch: pytest.MonkeyPatch, net: dx.DynamicNet) -> None:
    step = run.Confidence.step

    class Turned(run.Confidence):
        def step(self, logits_bk, rows=None, exit=-1):
            return 1 - step(self, logits_bk, rows, exit)

    monkeypatch.setattr(run, "Confidence", Turned)


def dropped_sample(monkeypatch: pytest.MonkeyPatch, net: dx.DynamicNet) -> None:
    compact = run._RunState.compact
    monkeypatch.setattr(run._RunState, "compact", lambda state, staying: compact(state, staying.roll(1)))


def off_by_one_exit(monkeypatch: pytest.MonkeyPatch, net: dx.DynamicNet) -> None:
    answer = run._RunState.answer
    monkeypatch.setattr(run._RunState, "answer", lambda state, e, logits: answer(state, max(e - 1, 0), logits))


def stale_buffer(monkeypatch: pytest.MonkeyPatch, net: dx.DynamicNet) -> None:
    next(m for m in net.exits[0].modules() if isinstance(m, nn.BatchNorm2d)).train()


def free_heads(monkeypatch: pytest.MonkeyPatch, net: dx.DynamicNet) -> None:
    for exit in net.exits:
        exit.macs = 0
    table_of = collect.table_of
    paid = tuple([100] * len(net.exits) + [0])

    def charged(net, logits, **known):
        return replace(table_of(net, logits, **known), head_macs_e=paid)

    monkeypatch.setattr("dynext.testing.table_of", charged)


def forgotten_temperature(monkeypatch: pytest.MonkeyPatch, net: dx.DynamicNet) -> None:
    step = run.Confidence.step

    class Warm(run.Confidence):
        def step(self, logits_bk, rows=None, exit=-1):
            return step(self, logits_bk / 2, rows, exit)

    monkeypatch.setattr(run, "Confidence", Warm)


MUTANTS = [wrong_sign, dropped_sample, off_by_one_exit, stale_buffer, free_heads, forgotten_temperature]


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


def turned_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = skip.runs
    monkeypatch.setattr(skip, "runs", lambda logit, keep: ~runs(logit, keep))


def samples_put_back_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skip, "_slice", lambda running: slice(0, len(running)))


def stale_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    decision = skip.Skips.decision

    def forgetful(self: skip.Skips, s: int, tap: torch.Tensor) -> torch.Tensor | None:
        kept = self.memory
        run_b = decision(self, s, tap)
        self.memory = kept
        return run_b

    monkeypatch.setattr(skip.Skips, "decision", forgetful)


def order_of_paths_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = run._RunState.begin
    monkeypatch.setattr(run._RunState, "begin", lambda state, order: begin(state, None))


def free_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    def unpaid(state: run._RunState, g: int | None, run_b: torch.Tensor | None) -> None:
        if g is not None and run_b is not None:
            state.ran_bg[slice(None) if state.sample_b is None else state.sample_b, g] = run_b

    monkeypatch.setattr(run._RunState, "decide", unpaid)


GATE_MUTANTS = [
    (turned_gate, "recurrent"),
    (samples_put_back_elsewhere, "recurrent"),
    (stale_memory, "recurrent"),
    (order_of_paths_forgotten, "policy"),
    (free_gates, "feedforward"),
]


@pytest.mark.parametrize("kind", sorted(LEARNED))
def test_the_original_with_gates_passes(kind: str) -> None:
    net = gated_net(kind=kind, exits=False)
    check_gates(net, samples_for(net))


@pytest.mark.parametrize(("mutate", "kind"), GATE_MUTANTS, ids=lambda m: getattr(m, "__name__", m))
def test_a_mutant_with_gates_is_caught(mutate, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = gated_net(kind=kind, exits=False)
    mutate(monkeypatch)
    with pytest.raises(ConformanceError):
        check_gates(net, samples_for(net))
