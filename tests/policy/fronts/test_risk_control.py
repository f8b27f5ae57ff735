"""Risk control: the bound holds as often as it says, on a thousand draws of calibration samples."""

import numpy as np
import pytest
import torch
from reference import bounds as slow
from tables import make_table

from dynext.errors import PolicyError
from dynext.policy.fronts.exact import exact_front
from dynext.policy.fronts.risk_control import control_risk
from dynext.policy.table import simulate

TRIALS, DELTA, ALLOWED = 1000, 0.1, 0.06


@pytest.mark.parametrize(("risk", "basis"), [("disagreement", "teacher"), ("accuracy", "labels")])
def test_more_is_lost_than_allowed_no_more_often_than_delta(risk: str, basis: str) -> None:
    labelled = make_table(4000, e=3, basis="labels", noise=0.5, seed=7)
    front = exact_front(make_table(300, e=3, basis=basis, noise=0.5, seed=8))
    lost_p = {}
    for policy in front.policies:
        exit_n = simulate(labelled, policy).exit_n[:, None]
        differs_n = labelled.answer_ne.gather(1, exit_n)[:, 0] != labelled.answer_ne[:, -1]
        wrong_n = labelled.right_ne[:, -1] & ~labelled.right_ne.gather(1, exit_n)[:, 0]
        lost_p[policy.threshold_e] = float((differs_n if risk == "disagreement" else wrong_n).double().mean())
    lost_p[(None, None, 0.0)] = 0.0
    assert min(lost_p.values()) < ALLOWED < max(lost_p.values())
    draw = torch.Generator().manual_seed(0)
    broken, saved = [], []
    for _ in range(TRIALS):
        seen = labelled.subset(torch.randint(len(labelled), (250,), generator=draw))
        policy = control_risk(front, seen, max_drop=ALLOWED, delta=DELTA, risk=risk)
        broken.append(lost_p[policy.threshold_e] > ALLOWED)
        saved.append(any(policy.enabled_e[:-1]))
    assert np.mean(broken) <= DELTA + 2 * (DELTA * (1 - DELTA) / TRIALS) ** 0.5
    assert np.mean(saved) > 0.5


def test_the_path_ends_before_the_first_policy_that_fails() -> None:
    front = exact_front(make_table(300, e=3, noise=0.5, seed=8))
    table = make_table(400, e=3, basis="labels", noise=0.5, seed=9)
    policy = control_risk(front, table, max_drop=0.05, delta=0.05)
    bounds = []
    for tested in reversed(front.policies):
        lost = len(table) - round(simulate(table, tested).agreement * len(table))
        bounds.append(1 - slow.lower_bound(len(table) - lost, len(table), 0.05))
    passed = next(i for i, bound in enumerate(bounds) if bound > 0.05)
    assert 0 < passed < len(bounds)
    assert policy.threshold_e == list(reversed(front.policies))[passed - 1].threshold_e
    assert f"bound {bounds[passed - 1]:.2%}" in policy.note
    assert "made-up samples (n=400)" in policy.note


def test_no_policy_is_safe_is_an_answer() -> None:
    front = exact_front(make_table(100, e=3, basis="labels", noise=1.0))
    policy = control_risk(front, make_table(50, e=3, noise=30.0), max_drop=0.01)
    assert policy.threshold_e == (None, None, 0.0)
    assert policy.note.startswith("No exit is safe: disagreement at most 1.00% with probability 0.95")


def test_wishes_that_make_no_sense_are_refused() -> None:
    table = make_table(50, basis="labels")
    front = exact_front(table)
    for wish, says in (
        ({"max_drop": 2}, "max_drop 2"),
        ({"max_drop": 0.1, "delta": 0}, "delta 0"),
    ):
        with pytest.raises(PolicyError, match=says):
            control_risk(front, table, **wish)
    with pytest.raises(PolicyError, match="risk 'all'"):
        control_risk(front, table, max_drop=0.1, risk="all")
    with pytest.raises(PolicyError, match="labelled samples only"):
        control_risk(front, make_table(50), max_drop=0.1, risk="accuracy")
    with pytest.raises(PolicyError, match="for 4 exits"):
        control_risk(front, make_table(50, e=3), max_drop=0.1)
