"""One sample is run by code of its own: it gives what a batch gives."""

from dataclasses import replace

import pytest
import torch
from gated_nets import LEARNED, gated_net, samples_for
from torch.testing import assert_close

import dynext as dx
from dynext.testing import halving_rule


def fields_of(net: dx.DynamicNet, x: torch.Tensor, policy: dx.Policy, **how: float | None) -> tuple[torch.Tensor, ...]:
    prediction = net.run(x, policy, **how)
    return prediction.logits, prediction.exit, prediction.macs, prediction.ran


@pytest.mark.parametrize("kind", sorted(LEARNED))
@pytest.mark.parametrize("deadline_ms", [None, 0, 60_000])
def test_as_in_a_batch_of_its_like(kind: str, deadline_ms: float | None) -> None:
    net = gated_net(kind=kind)
    x = samples_for(net)
    sure = net.run(x, dx.Policy.always(2)).logits.softmax(-1).amax(-1).median() + 1e-4
    keep_g = (None, *halving_rule(net, x)[0][1:])
    policy = dx.Policy(threshold_e=(float(sure), 0.0), temperature_e=(1.0, 1.0), keep_g=keep_g)
    outcomes = set()
    for i in range(len(x)):
        alone, twice = (fields_of(net, x[index], policy, deadline_ms=deadline_ms) for index in ([i], [i, i]))
        assert_close(alone, tuple(part[:1] for part in twice), rtol=1e-4, atol=1e-5)
        outcomes.add((int(alone[1]), int(alone[2])))
    assert len(outcomes) > (1 if deadline_ms == 0 else 2)


@pytest.mark.parametrize("threshold_e", [(0.0, 0.0), (None, 0.0), (1.0, 0.0), (2.0, 0.0)])
@pytest.mark.parametrize("measure", ["patience", "margin"])
def test_with_every_kind_of_threshold(measure: str, threshold_e: tuple[float | None, float]) -> None:
    net = gated_net()
    x = samples_for(net, 1)
    policy = dx.Policy(confidence=measure, threshold_e=threshold_e, temperature_e=(2.0, 1.0))
    alone, twice = fields_of(net, x, policy), fields_of(net, x.expand(2, -1, -1, -1), policy)
    assert alone[3] is None
    assert_close(alone[:3], tuple(part[:1] for part in twice[:3]), rtol=1e-4, atol=1e-5)


def test_a_gate_that_sits_on_its_threshold_runs_as_in_a_batch() -> None:
    """Thresholds are rounded as the gate's logits are: a gate that has died says the same of every sample."""
    net = gated_net(exits=False)
    torch.nn.init.zeros_(net.gates.body.decide.weight)
    x = samples_for(net, 2)
    for openness in torch.linspace(-3, 3, 25):
        torch.nn.init.constant_(net.gates.body.decide.bias, float(openness))
        keep = float(openness.double().sigmoid())
        policy = replace(dx.Policy.never(1), keep_g=(keep,) * net.num_gates)
        assert torch.equal(net.run(x[:1], policy).ran[0], net.run(x, policy).ran[0])
