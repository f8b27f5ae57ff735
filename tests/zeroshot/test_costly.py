"""Heads scale with what is left to save, and a conversion tells of heads and clocks that eat the savings."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

import dynext as dx
from dynext.seeding import seeded
from dynext.zeroshot.costly import cost_notes


def model() -> nn.Module:
    """1.4 million MACs, of which a head of the usual width takes half."""
    with seeded(0):
        blocks = [nn.Sequential(nn.Conv2d(c, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for c in (1, 16, 16, 16)]
        return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).eval()


def small_net() -> dx.graph.StagedNet:
    return dx.split(model(), torch.zeros(1, 1, 14, 14))


def test_usual_heads_cost_a_share_of_what_leaving_saves() -> None:
    staged = small_net()
    usual = dx.attach(staged, dx.default_heads(10, hidden=64))
    assert max(usual.head_macs_e) > 0.3 * staged.macs
    net = dx.attach(staged, dx.default_heads(10))
    for exit, spent in zip(net.exits, net.trunk_macs_e, strict=False):
        assert exit.macs <= (staged.macs - spent) / 8 or exit.spec["hidden"] == 8
    hidden_e = [exit.spec["hidden"] for exit in net.exits]
    assert hidden_e == sorted(hidden_e, reverse=True)
    assert hidden_e[0] > hidden_e[-1] == 8
    wider = dict(net.exits[0].spec, hidden=hidden_e[0] + 8)
    costs = dx.attach(staged, lambda tap: wider, at=[0]).exits[0].macs
    assert costs > (staged.macs - net.trunk_macs_e[0]) / 8  # the widest that fits


def test_the_bundled_net_keeps_its_heads() -> None:
    opened = dx.open_model("bundled:fashion_resnet20")
    net = dx.attach(dx.split(opened.model, torch.zeros(1, *opened.spec.shape)), dx.default_heads(10))
    assert [exit.spec["hidden"] for exit in net.exits] == [64, 64, 64, 64, 128]


def test_own_factories_may_ask_what_a_head_may_cost() -> None:
    staged, asked = small_net(), []

    def head(tap: tuple[int, ...], *, most_macs: int) -> nn.Module:
        asked.append(most_macs)
        return nn.Sequential(nn.Flatten(), nn.Linear(tap[0] * tap[1] * tap[2], 10))

    net = dx.attach(staged, head)
    assert asked == [round((staged.macs - spent) / 8) for spent in net.trunk_macs_e[:-1]]


def test_a_conversion_tells_of_costs(caplog: pytest.LogCaptureFixture) -> None:
    staged = small_net()
    net = dx.attach(staged, dx.default_heads(10, hidden=64))
    x = torch.randn(6, 1, 14, 14)
    samples = dx.data.Samples(pixels=x.sigmoid(), spec=dx.InputSpec(shape=(1, 14, 14), mean=(0.5,), std=(0.25,)))
    e = net.num_exits
    table = replace(
        dx.collect(net, samples), trunk_ms_e=tuple(map(float, range(1, e + 1))), head_ms_e=(*(0.1,) * (e - 1), 0.0)
    )
    on = dx.Policy(threshold_e=(*(1.0,) * (e - 1), 0.0), temperature_e=(1.0,) * e)  # and never reached
    notes = cost_notes(net, on, table)
    assert len(notes) == net.num_exits
    assert "the head after" in notes[0]
    assert "% of the static net's MACs" in notes[0]
    assert "MACs are saved here, time is not" in notes[-1]
    cheap = dx.attach(staged, dx.heads.pooled_heads(10))
    assert not cost_notes(cheap, dx.Policy.always(net.num_exits), replace(table, head_macs_e=cheap.head_macs_e))
    with caplog.at_level(logging.WARNING, "dynext"):
        conversion = dx.convert(
            model(),
            samples.spec,
            exits=dx.Exits(heads=dx.default_heads(10, hidden=64)),
            synthesis=samples,
            calibrate=replace(samples, pixels=torch.rand(6, 1, 14, 14)),
            training=dx.Frozen(steps=1),
            target=dx.Target(budget=1.5),
        )
    assert conversion.provenance["notes"]
    assert conversion.provenance["notes"][0] in caplog.text
