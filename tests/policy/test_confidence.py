import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import confidence as slow
from torch.testing import assert_close

from dynext.errors import PolicyError
from dynext.policy.confidence import CONFIDENCES, Confidence, confidence, confidences
from dynext.seeding import generator

STATELESS = CONFIDENCES[:3]


@pytest.mark.parametrize("measure", STATELESS)
def test_confidence_equals_its_definition(measure):
    logits_nk = 3 * torch.randn(20, 7, generator=generator(0), dtype=torch.float64)
    expected = np.array([slow.confidence(z_k, measure) for z_k in logits_nk.numpy()])
    assert_close(confidence(logits_nk, measure).numpy(), expected)


@pytest.mark.parametrize("measure", STATELESS)
def test_sure_is_one_and_a_tie_is_least(measure):
    conf = confidence(torch.tensor([[99.0, 0, 0, 0], [1, 1, 1, 1]]), measure)
    assert_close(conf, torch.tensor([1.0, 0.25 if measure == "max_probability" else 0.0]))


@given(st.integers(2, 9), st.floats(0.01, 1e4), st.sampled_from(STATELESS))
def test_confidence_lies_between_0_and_1(k, scale, measure):
    conf = confidence(scale * torch.randn(30, k, generator=generator(k)), measure)
    assert ((conf >= 0) & (conf <= 1)).all()


@pytest.mark.parametrize("measure", CONFIDENCES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_make_no_sense_are_sure_of_nothing(measure, bad):
    logits_nek = torch.zeros(2, 2, 3)
    logits_nek[1, 0, 1] = bad
    assert confidences(logits_nek, measure).isnan().tolist() == [[False, False], [True, False]]


def test_an_impossible_class_does_not_spoil_a_row():
    logits_nk = torch.tensor([[0.0, -torch.inf, 0.0]])
    assert_close(confidence(logits_nk, "entropy"), 1 - torch.tensor([2.0]).log() / torch.tensor([3.0]).log())


def test_patience_by_hand():
    answers_ne = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 1], [2, 2, 0, 0]])
    logits_nek = torch.nn.functional.one_hot(answers_ne, 3).float()
    expected = torch.tensor([[1, 2, 3, 4], [1, 1, 2, 1], [1, 1, 1, 1], [1, 2, 1, 2]]) / 4
    assert_close(confidences(logits_nek, "patience"), expected)
    some = confidences(logits_nek, "patience", enabled_e=(True, False, True, True))
    expected = torch.tensor([[1, 2, 3], [1, 1, 1], [1, 2, 1], [1, 1, 2]]) / 4
    assert_close(some[:, [0, 2, 3]], expected)
    assert some[:, 1].isnan().all()


@pytest.mark.parametrize("measure", CONFIDENCES)
def test_step_over_survivors_equals_the_whole_table(measure):
    draw = generator(1)
    logits_nek = torch.randn(40, 5, 3, generator=draw)
    logits_nek[3, 1] = torch.nan
    temperature_e = (0.7, 1.3, 2.0, 0.9, 1.0)
    enabled_e = (True, True, False, True, True)
    whole_ne = confidences(logits_nek, measure, temperature_e, enabled_e)
    steps, rows = Confidence(measure, 5), torch.arange(40)
    for e in (0, 1, 3, 4):
        conf_b = steps.step(logits_nek[rows, e] / temperature_e[e], rows)
        assert_close(conf_b, whole_ne[rows, e], rtol=0, atol=0, equal_nan=True)
        rows = rows[torch.rand(len(rows), generator=draw) < 0.7]


def test_nobody_left_is_no_trouble():
    steps = Confidence("patience", 3)
    assert steps.step(torch.zeros(0, 4)).shape == (0,)


def test_a_near_miss_is_suggested():
    with pytest.raises(PolicyError, match=r"unknown confidence 'entropi'.*did you mean entropy"):
        confidence(torch.zeros(1, 2), "entropi")
    with pytest.raises(PolicyError, match="patience compares an exit with those before it"):
        confidence(torch.zeros(1, 2), "patience")
    with pytest.raises(PolicyError, match="at least 2 classes, the logits have 1"):
        confidence(torch.zeros(1, 1), "margin")
