"""The measure that gates have learned: what it says, in policies and in runs."""

import json

import numpy as np
import pytest
import torch
from reference import confidence as slow
from tables import make_table
from zoo import NETS

import dynext as dx
from dynext.errors import PolicyError
from dynext.net.collect import table_of
from dynext.policy.choose import choose
from dynext.policy.confidence import Confidence, Learned, confidences
from dynext.policy.policy import Policy
from dynext.policy.table import simulate

GATES = Learned(weight_e=((4.0, -1.0, 2.0, -1.5), (0.5, 3.0, 1.0, -2.0), (1.0, 1.0, 1.0, 0.0)))


def test_it_is_a_sigmoid_of_three_measures() -> None:
    table = make_table(20)
    conf_ne = confidences(table.logits_nek, GATES)
    for n, e in ((0, 0), (7, 1), (19, 2)):
        z_k = table.logits_nek[n, e].numpy()
        seen = [slow.confidence(z_k, name) for name in ("max_probability", "margin", "entropy")]
        *weights, constant = GATES.weight_e[e]
        assert float(conf_ne[n, e]) == pytest.approx(1 / (1 + np.exp(-np.dot(weights, seen) - constant)), rel=1e-5)
    assert conf_ne[:, 3].tolist() == confidences(table.logits_nek, "max_probability")[:, 3].tolist()


def test_a_policy_with_gates_is_json_and_runs_as_simulated() -> None:
    model, example = NETS["residual"]()
    net = dx.attach(dx.split(model, example, after=[0.25, 0.5, 0.75]), dx.heads.conv_heads(10, hidden=8))
    x = torch.randn(30, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        table = table_of(net, net.all_exits(x), label_n=None, rows="made-up samples")
    middle_e = confidences(table.logits_nek, GATES).median(0).values[:3].tolist()
    policy = Policy(confidence=GATES, threshold_e=(middle_e[0], None, middle_e[2], 0.0), temperature_e=(1.0,) * 4)
    assert Policy.from_json(policy.to_json()) == policy
    assert json.loads(policy.to_json())["confidence"] == {"learned": [list(w) for w in GATES.weight_e]}
    out, expected = net.run(x, policy), simulate(table, policy)
    assert out.exit.tolist() == expected.exit_n.tolist()
    assert {0, 2, 3} <= set(out.exit.tolist())
    assert "confidence (learned)" in str(dx.report(table, policy))


def test_thresholds_are_chosen_on_it_like_on_any_other() -> None:
    table = make_table(300, basis="labels")
    policy = choose(table, budget=0.6, confidence=GATES)
    assert policy.confidence == GATES
    assert simulate(table, policy).macs <= 0.6 * table.static_macs


def test_gates_that_do_not_fit_are_refused(tmp_path) -> None:
    with pytest.raises(PolicyError, match="gates of 3 early exits for 3 exits"):
        Policy(confidence=GATES, threshold_e=(0.5, 0.5, 0.0), temperature_e=(1.0,) * 3)
    with pytest.raises(PolicyError, match="gates of 3 early exits for 2 exits"):
        Confidence(GATES, 2)
    with pytest.raises(PolicyError, match="give 4 finite numbers"):
        Learned(weight_e=((1.0, 2.0),))
    with pytest.raises(PolicyError, match="is no learned measure"):
        Policy.from_dict({"confidence": {"gates": 1}, "threshold_e": [0.0], "temperature_e": [1.0]})
    model, example = NETS["residual"]()
    net = dx.attach(dx.split(model, example, after=[0.25, 0.5, 0.75]), dx.heads.conv_heads(10, hidden=8))
    policy = Policy(confidence=GATES, threshold_e=(0.5, 0.5, 0.5, 0.0), temperature_e=(1.0,) * 4)
    spec = dx.InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)
    with pytest.raises(PolicyError, match="without learned gates"):
        dx.export(net, tmp_path / "out", policy=policy, spec=spec)
