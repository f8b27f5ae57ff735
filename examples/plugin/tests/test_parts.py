"""The parts are found by name, and keep their promises by dynext's own kit."""

import torch
from torch import nn

import dynext as dx
from dynext import plugins
from dynext.testing import check_gates, check_head, check_synthesizer

SPEC = dx.InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)


def test_dynext_finds_them() -> None:
    named = {"heads": "example", "gates": "example", "synthesizers": "waves", "confidences": "gini"}
    for group, name in {**named, "recipes": "gini_exits"}.items():
        part = plugins.registered(f"dynext.{group}")[name]
        assert part.version == "dynext-example 0.1.0"
        assert part.load()


def test_the_synthesizer() -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).eval()
    check_synthesizer("waves", teacher, SPEC, waves=2)


def test_the_confidence() -> None:
    sure = dx.policies.confidence(torch.tensor([[0.0, 0.0], [99.0, 0.0]]), "gini")
    assert sure.tolist() == [0.5, 1.0]


def test_the_head() -> None:
    check_head("example", tap_shape=(8, 4, 4), num_classes=3)


def test_the_gate() -> None:
    net = dx.models.ResNet(8, num_classes=10, width=4, channels=3).eval()
    x = torch.randn(4, *SPEC.shape)
    staged = dx.split(net, x[:1], granularity="block")
    check_gates(dx.attach_gates(dx.attach(staged, dx.default_heads(10)), "example"), x)


def test_the_recipe() -> None:
    recipe = plugins.registered("dynext.recipes")["gini_exits"].load()
    assert 0 < recipe.main(recipe.SMOKE)["agreement"] <= 1
