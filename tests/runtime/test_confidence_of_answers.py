"""Answers of a run: classes, and probabilities at the temperature of the exit that each sample left at."""

from __future__ import annotations

import pytest
import torch
from zoo import NETS

import dynext as dx
from dynext.errors import SourceError
from dynext.policy.policy import Policy
from dynext.types import Prediction

TEMPERATURES = (0.5, 2.0, 7.0)


def net() -> dx.DynamicNet:
    staged = dx.split(NETS["residual"]()[0], torch.zeros(1, 3, 8, 8), after=(0.3, 0.6))
    return dx.attach(staged, dx.default_heads(10))


@pytest.mark.parametrize("batch", [1, 24])
@pytest.mark.parametrize("compact", ["always", "never"])
def test_confidence_is_what_the_policy_has_compared_with_its_thresholds(batch: int, compact: str) -> None:
    dynamic, x = net(), torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    logits_bek = dynamic.all_exits(x).detach()
    middle = [float((logits_bek[:, e] / TEMPERATURES[e]).softmax(-1).amax(-1).median()) for e in (0, 1)]
    policy = Policy(threshold_e=(middle[0], middle[1], 0.0), temperature_e=TEMPERATURES)
    given = dynamic.run(x, policy, compact=compact)
    tempered_bk = given.logits / torch.tensor(TEMPERATURES)[given.exit][:, None]
    torch.testing.assert_close(given.probabilities(), tempered_bk.softmax(-1))
    torch.testing.assert_close(given.confidence, tempered_bk.softmax(-1).amax(-1))
    assert bool((given.confidence >= 0).all() & (given.confidence <= 1).all())
    early = given.exit < 2
    assert bool((given.confidence[early] >= torch.tensor(middle)[given.exit[early]] - 1e-5).all())
    assert torch.equal(given.classes, given.logits.argmax(-1))
    if batch > 1:
        assert len(given.exit.unique()) > 1
        assert not torch.allclose(given.probabilities(), given.logits.softmax(-1))


def test_exits_of_any_scale_compare() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0]])
    given = Prediction(
        logits=torch.cat([logits, 9 * logits]),
        exit=torch.tensor([0, 1]),
        macs=torch.tensor([1, 2]),
        temperature_e=(1.0, 9.0),
    )
    assert given.confidence[0] == pytest.approx(float(given.confidence[1]))


def test_top_is_sorted_complete_and_adds_up() -> None:
    given = net().run(torch.randn(5, 3, 8, 8), Policy.never(3))
    top = given.top(3)
    assert top.classes.shape == top.probabilities.shape == (5, 3)
    assert torch.equal(top.classes[:, 0], given.classes)
    assert torch.equal(top.probabilities, top.probabilities.sort(dim=1, descending=True).values)
    torch.testing.assert_close(given.top(99).probabilities.sum(1), torch.ones(5))
    with pytest.raises(SourceError, match=r"top\(0\); ask for 1 class or more"):
        given.top(0)


def test_half_precision_and_no_temperatures_are_taken_as_they_are() -> None:
    given = Prediction(logits=torch.tensor([[1.0, 0.0]]).half(), exit=torch.tensor([0]), macs=torch.tensor([1]))
    assert given.probabilities().dtype == torch.float32
    assert given.confidence.tolist() == pytest.approx([0.7311], abs=1e-3)
    none = net().run(torch.zeros(0, 3, 8, 8), Policy.never(3))
    assert none.confidence.shape == none.classes.shape == (0,)


def test_a_batch_plan_tells_it_too() -> None:
    dynamic, x = net(), torch.randn(8, 3, 8, 8)
    policy = Policy(threshold_e=(0.5, 0.5, 0.0), temperature_e=TEMPERATURES)
    spec = dx.InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)
    table = dx.collect(dynamic, dx.data.Samples(pixels=torch.rand(40, 3, 8, 8), spec=spec))
    plan = dx.policies.plan_batch(table, policy, budget=0.9)
    given = dx.policies.run_batch(dynamic, x, plan)
    assert given.temperature_e == TEMPERATURES
    assert bool((given.confidence <= 1).all())
