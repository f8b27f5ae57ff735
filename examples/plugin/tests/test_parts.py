"""The parts are found by name, and keep their promises by dynext's own kit."""

import torch
from torch import nn

import dynext as dx
from dynext import plugins
from dynext.testing import check_synthesizer

SPEC = dx.InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)


def test_dynext_finds_them() -> None:
    for group, name in (("dynext.heads", "example"), ("dynext.synthesizers", "waves"), ("dynext.confidences", "gini")):
        assert plugins.registered(group)[name].version == "dynext-example 0.1.0"
        assert callable(plugins.registered(group)[name].load())


def test_the_synthesizer() -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).eval()
    check_synthesizer("waves", teacher, SPEC, waves=2)


def test_the_confidence() -> None:
    sure = dx.policies.confidence(torch.tensor([[0.0, 0.0], [99.0, 0.0]]), "gini")
    assert sure.tolist() == [0.5, 1.0]


def test_the_head() -> None:
    head = plugins.registered("dynext.heads")["example"].load()((8, 4, 4), 3)
    assert head(torch.zeros(2, 8, 4, 4)).shape == (2, 3)
