"""Ranking of stages, and the controls of equal cost."""

from dataclasses import replace

import pytest
import torch

import dynext as dx
from dynext.errors import PolicyError, SourceError
from dynext.train.controls import random_control, static_control


def gated(static: dx.graph.StagedNet) -> dx.DynamicNet:
    return dx.attach_gates(static, dx.gates.recurrent_gates())


def test_stages_are_ranked_by_what_dropping_them_on_top_changes(static, train_samples) -> None:
    net = gated(static)
    few = train_samples.subset(torch.arange(64))
    ranking = dx.train.rank_stages(net, few)
    assert sorted(ranking.order) == [0, 1, 2, 3]
    x = few.take(torch.arange(64)).x
    full = static(x).double().log_softmax(1)

    def changed(dropped: set[int]) -> float:
        live = (x,)
        for s, stage in enumerate(static.stages):
            if s not in {net.gates.at[g] for g in dropped}:
                live = stage(*live)
        return float((full.exp() * (full - live[0].double().log_softmax(1))).sum(1).mean())

    with torch.no_grad():
        for count in range(4):
            before = set(ranking.order[:count])
            tried = {g: changed(before | {g}) for g in range(4) if g not in before}
            assert ranking.order[count] == min(tried, key=tried.__getitem__)
            assert ranking.kl[count] == pytest.approx(min(tried.values()), rel=1e-4, abs=1e-6)
    assert ranking.macs[-1] == sum(static.stages[s].macs for s in net.gates.at)
    assert list(ranking.macs) == sorted(ranking.macs)
    assert ranking.run(0) == (True,) * 4
    assert ranking.run(1) == tuple(g != ranking.order[0] for g in range(4))
    with pytest.raises(SourceError, match="the source has no samples; give at least 1"):
        dx.train.rank_stages(net, few.subset(torch.arange(0)))


def test_controls_cost_the_same(static, train_samples, test_samples) -> None:
    net = gated(static)
    ranking = dx.train.rank_stages(net, train_samples.subset(torch.arange(32)))
    x = test_samples.take(torch.arange(300)).x
    policy = dx.Policy.skipping(1, 4)
    static_macs = net.trunk_macs_e[-1]
    fixed = static_control(net, ranking, saved=ranking.macs[1] + 1)
    assert fixed.run(x, policy).macs.unique().tolist() == [static_macs - ranking.macs[1]]
    saved = 0.4 * ranking.macs[-1]
    chance = random_control(net, saved, seed=1)
    answered = chance.run(x, policy)
    assert float(answered.macs.double().mean()) == pytest.approx(static_macs - saved, rel=0.03)
    assert len(answered.ran.unique(dim=0)) > 10
    assert net.gates.spec["kind"] == "recurrent"
    with pytest.raises(PolicyError, match="MACs to save, the gated stages have"):
        random_control(net, static_macs)


def test_learned_gates_beside_controls_of_equal_cost(static, train_samples, test_samples, quick) -> None:
    net, _ = dx.train.skipnet_pretrain(gated(static), train_samples, replace(quick, steps=60), price=1.0)
    tuned = []

    def tune(control: dx.DynamicNet) -> dx.DynamicNet:
        tuned.append(control.gates.spec["kind"])
        return control

    few = train_samples.subset(torch.arange(64))
    reports = dx.train.at_equal_cost(net, few, test_samples, static=static, tune=tune)
    assert list(reports) == ["learned", "fixed set", "chance"]
    assert tuned == ["static", "random"]
    assert reports["chance"].macs == pytest.approx(reports["learned"].macs, rel=0.05)
    block = static.stages[net.gates.at[0]].macs
    assert abs(reports["fixed set"].macs - reports["learned"].macs) <= block / 2 + 1
    assert {report.static_accuracy for report in reports.values()} == {reports["learned"].static_accuracy}
    assert reports["fixed set"].paths == 1
    assert reports["chance"].paths > 1
