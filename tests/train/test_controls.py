"""Ranking of stages, and the controls of equal cost."""

from dataclasses import replace

import pytest
import torch

import dynext as dx
from dynext.errors import PolicyError, SourceError
from dynext.train.controls import random_control, static_control


def gated(static: dx.graph.StagedNet) -> dx.DynamicNet:
    return dx.attach_gates(static, dx.gates.recurrent_gates())


def test_stages_are_ranked_by_what_dropping_them_on_top_changes(static, train_rows) -> None:
    net = gated(static)
    rows = train_rows.subset(torch.arange(64))
    found = dx.train.rank_stages(net, rows)
    assert sorted(found.order) == [0, 1, 2, 3]
    x = rows.take(torch.arange(64)).x
    full = static(x).double().log_softmax(1)

    def changed(dropped: set[int]) -> float:
        live = (x,)
        for s, stage in enumerate(static.stages):
            if s not in {net.gates.at[g] for g in dropped}:
                live = stage(*live)
        return float((full.exp() * (full - live[0].double().log_softmax(1))).sum(1).mean())

    with torch.no_grad():
        for count in range(4):
            before = set(found.order[:count])
            tried = {g: changed(before | {g}) for g in range(4) if g not in before}
            assert found.order[count] == min(tried, key=tried.__getitem__)
            assert found.kl[count] == pytest.approx(min(tried.values()), rel=1e-4, abs=1e-6)
    assert found.macs[-1] == sum(static.stages[s].macs for s in net.gates.at)
    assert list(found.macs) == sorted(found.macs)
    assert found.run(0) == (True,) * 4
    assert found.run(1) == tuple(g != found.order[0] for g in range(4))
    with pytest.raises(SourceError, match="nothing can be ranked"):
        dx.train.rank_stages(net, rows.subset(torch.arange(0)))


def test_controls_cost_the_same(static, train_rows, test_rows) -> None:
    net = gated(static)
    ranking = dx.train.rank_stages(net, train_rows.subset(torch.arange(32)))
    x = test_rows.take(torch.arange(300)).x
    policy = dx.Policy.skipping(1, 4)
    static_macs = net.trunk_macs_e[-1]
    fixed = static_control(net, ranking, saved=ranking.macs[1] + 1)
    assert fixed.run(x, policy).macs.unique().tolist() == [static_macs - ranking.macs[1]]
    saved = 0.4 * ranking.macs[-1]
    chance = random_control(net, saved, seed=1)
    found = chance.run(x, policy)
    assert float(found.macs.double().mean()) == pytest.approx(static_macs - saved, rel=0.03)
    assert len(found.ran.unique(dim=0)) > 10
    assert net.gates.spec["kind"] == "recurrent"
    with pytest.raises(PolicyError, match="MACs to save, the gated stages have"):
        random_control(net, static_macs)


def test_learned_gates_beside_controls_of_equal_cost(static, train_rows, test_rows, quick) -> None:
    net, _ = dx.train.skipnet_pretrain(gated(static), train_rows, replace(quick, steps=60), price=1.0)
    tuned = []

    def tune(control: dx.DynamicNet) -> dx.DynamicNet:
        tuned.append(control.gates.spec["kind"])
        return control

    few = train_rows.subset(torch.arange(64))
    found = dx.train.at_equal_cost(net, few, test_rows, static=static, tune=tune)
    assert list(found) == ["learned", "fixed set", "chance"]
    assert tuned == ["static", "random"]
    assert found["chance"].macs == pytest.approx(found["learned"].macs, rel=0.05)
    block = static.stages[net.gates.at[0]].macs
    assert abs(found["fixed set"].macs - found["learned"].macs) <= block / 2 + 1
    assert {one.static_accuracy for one in found.values()} == {found["learned"].static_accuracy}
    assert found["fixed set"].paths == 1
    assert found["chance"].paths > 1
