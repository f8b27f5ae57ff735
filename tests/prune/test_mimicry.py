"""Mimicry of the next stage, what lent attention is compared with: it teaches, and heads' first maps become alike."""

import pytest
import torch
from methods import METHODS, config, setting

import dynext as dx
from dynext.prune import attention as training
from dynext.prune.attention import transfer_attention


def test_mimicry_teaches_and_leaves_the_trunk() -> None:
    net, samples = setting(METHODS["joint"])
    x = samples.take(torch.arange(32)).x
    for weight in (0.0, 50.0):
        mimic = transfer_attention(net, samples, config(40), weight=weight, start=0.0)
        assert torch.equal(mimic(x), net(x))
        with torch.no_grad():
            learned, fresh = (
                torch.nn.functional.cross_entropy(model.all_exits(x)[:, 0], samples.y[:32]) for model in (mimic, net)
            )
        assert learned < fresh


def test_mimicry_makes_maps_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    net, samples = setting(METHODS["joint"])
    distances: dict[float, list[float]] = {}
    true = training.attention_mimicry

    def watched(own: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        distances[weight].append(float(true(own, later).detach()))
        return true(own, later)

    monkeypatch.setattr(training, "attention_mimicry", watched)
    for weight in (1e-6, 1e3):
        distances[weight] = []
        transfer_attention(net, samples, config(60), weight=weight, start=0.5)
        assert len(distances[weight]) == 60  # two exits, half of the steps
    assert sum(distances[1e3][-10:]) < 0.7 * sum(distances[1e-6][-10:])


def test_it_is_the_first_map_of_a_head_that_mimics() -> None:
    net, samples = setting(METHODS["joint"])
    net = dx.attach(net.staged, dx.heads.conv_heads(10, hidden=8, convs=2))
    reduced = net.exits[0].reduce(net.taps(samples.take(torch.arange(2)).x)[0][0])
    logits, first = training._MappedHeads(net, mapped=True)._logits_and_map(net.exits[0], reduced)
    with torch.no_grad():
        assert torch.equal(first, net.exits[0].embedder[:3](reduced))
        assert torch.equal(logits, net.exits[0].head(reduced))
