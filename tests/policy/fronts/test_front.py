"""Fronts of thresholds: exact against trying them all, genetic against exact, quotas against a table by hand."""

import numpy as np
import pytest
import torch
from reference import thresholds as slow
from tables import make_table

import dynext as dx
from dynext.errors import PolicyError
from dynext.policy.confidence import confidences
from dynext.policy.fronts.exact import exact_front
from dynext.policy.fronts.front import Front
from dynext.policy.fronts.genetic import genetic_front
from dynext.policy.fronts.quota import quota_front, quota_thresholds, quotas
from dynext.policy.table import ExitTable, simulate

FRONTS = {
    "exact": exact_front,
    "genetic": lambda table, **more: genetic_front(table, population=20, generations=5, **more),
    "quota": quota_front,
}
EVERY = pytest.mark.parametrize("draw", FRONTS.values(), ids=FRONTS)


def points(front: Front) -> np.ndarray:
    return np.stack([front.cost_p, front.right_p], axis=1)


def by_hand(table: ExitTable) -> np.ndarray:
    sure_ne = confidences(table.logits_nek, "max_probability").numpy()
    front_p2 = slow.front(sure_ne, table.right_ne.numpy(), table.trunk_macs_e, table.head_macs_e)
    return front_p2 / np.array([table.static_macs, 1])


@pytest.mark.parametrize(("n", "e"), [(12, 3), (9, 4), (30, 2)])
@pytest.mark.parametrize("basis", ["labels", "teacher"])
def test_the_exact_front_is_that_of_all_policies(n: int, e: int, basis: str) -> None:
    for seed in range(3):
        table = make_table(n, e, noise=2.0, basis=basis, seed=seed)
        np.testing.assert_allclose(points(exact_front(table)), by_hand(table), rtol=1e-9)


def test_the_genetic_search_finds_the_known_optimum_of_a_small_table() -> None:
    for seed in range(3):
        table = make_table(12, 3, noise=2.0, basis="labels", seed=seed)
        front = genetic_front(table, population=40, generations=40)
        np.testing.assert_allclose(points(front), by_hand(table), rtol=1e-9)


@EVERY
@pytest.mark.parametrize("temperature", [None, (2.0, 0.5, 1.5, 1.0)])
def test_a_front_holds_what_simulate_finds(draw, temperature) -> None:
    table = make_table(150, noise=2.0, basis="labels")
    front = draw(table, temperature=temperature, confidence="margin")
    assert len(front.policies) > 3
    for policy, cost, right in zip(front.policies, front.cost_p, front.right_p, strict=True):
        outcome = simulate(table, policy)
        assert outcome.macs / table.static_macs == pytest.approx(cost)
        assert outcome.accuracy == pytest.approx(right)
        assert f"{cost:.1%} of the static MACs" in policy.note
        assert policy.basis == "labels"
    assert list(front.cost_p) == sorted(set(front.cost_p))
    assert list(front.right_p) == sorted(set(front.right_p))
    assert max(front.right_p) >= front.static_right == pytest.approx(float(table.right_ne[:, -1].double().mean()))


def test_exact_and_genetic_fronts_are_not_beaten_by_quotas() -> None:
    table = make_table(300, noise=1.5, basis="labels")
    exact, genetic, quota = exact_front(table), genetic_front(table), quota_front(table)
    for cost, right in points(quota):
        for front in (exact, genetic):
            here = [r for c, r in points(front) if c <= cost + 0.005]
            assert max(here) >= right - 0.005
    assert simulate(table, exact.within(0.5)).accuracy >= simulate(table, quota.within(0.5)).accuracy


def test_a_budget_or_a_loss_picks_a_policy() -> None:
    table = make_table(300, noise=1.0, basis="labels")
    front = exact_front(table)
    for budget in (0.4, 0.6, 2.0):
        assert simulate(table, front.within(budget)).macs <= budget * table.static_macs
    for drop in (0.0, 0.02, 1.0):
        policy = front.losing(drop)
        assert simulate(table, policy).accuracy >= front.static_right - drop - 1e-12
        cheaper = [right for cost, right in points(front) if cost < simulate(table, policy).macs / 4000 - 1e-9]
        assert all(right < front.static_right - drop for right in cheaper)
    with pytest.raises(PolicyError, match=r"cannot be met: the cheapest of the front costs 0\.2"):
        front.within(0.01)
    with pytest.raises(PolicyError, match="max_drop -1"):
        front.losing(-1)


def test_quotas_are_the_published_ones() -> None:
    assert quotas(4, 1.0) == (0.25,) * 4
    q = 7 / 20
    assert quotas(3, q) == pytest.approx(np.array([q, q**2, q**3]) / (q + q**2 + q**3))


def test_quota_thresholds_of_a_table_by_hand() -> None:
    sure_ne = np.array([[0.9, 0.5, 1], [0.8, 0.9, 1], [0.7, 0.3, 1], [0.6, 0.8, 1], [0.5, 0.7, 1], [0.4, 0.6, 1]])
    # two of six leave first: samples 0 and 1; of the others the surest two at the second exit are samples 3 and 4
    assert quota_thresholds(sure_ne, (1 / 3, 1 / 3, 1 / 3)) == [0.8, 0.7]
    assert quota_thresholds(sure_ne, (0.1, 0.4, 0.5)) == [None, 0.8]
    assert quota_thresholds(sure_ne, (0.9, 0.5, 0.1)) == [0.5, None]
    with_nan = sure_ne.copy()
    with_nan[0, 0] = np.nan
    assert quota_thresholds(with_nan, (1 / 3, 1 / 3, 1 / 3)) == [0.7, 0.7]


def test_quota_thresholds_are_those_of_the_slow_walk() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        sure_ne, q = draw.random((37, 4)), draw.uniform(0.05, 2)
        assert quota_thresholds(sure_ne, quotas(4, q)) == slow.quota_thresholds(sure_ne, quotas(4, q))


@EVERY
def test_rows_of_nan_never_leave_early(draw) -> None:
    logits_nek = make_table(60).logits_nek.clone()
    logits_nek[:7] = torch.nan
    table = make_table(60, logits_nek=logits_nek)
    for policy in draw(table).policies:
        assert (simulate(table, policy).exit_n[:7] == 3).all()


@EVERY
def test_a_static_net_alone_is_a_front(draw) -> None:
    front = draw(make_table(20, e=1))
    assert front.policies[0].threshold_e == (0.0,)
    assert front.cost_p == (1.0,)


def test_the_search_repeats_itself_and_leaves_random_states_alone() -> None:
    table = make_table(80, noise=2.0)
    before, state = np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002  that it stays is the point
    first = genetic_front(table, population=12, generations=4, seed=3)
    assert first == genetic_front(table, population=12, generations=4, seed=3)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    assert torch.equal(state, torch.get_rng_state())


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(PolicyError, match="8 early exits leave 4 thresholds an exit"):
        exact_front(make_table(30, e=9))
    with pytest.raises(PolicyError, match="patience depends on which exits run"):
        exact_front(make_table(30), confidence="patience")
    with pytest.raises(PolicyError, match="population 2, generations 100"):
        genetic_front(make_table(30), population=2)
    with pytest.raises(PolicyError, match="q 0 for 3 exits"):
        quotas(3, 0)
    front = dx.policies.quota_front(make_table(30))
    with pytest.raises(PolicyError, match="a front has one measure"):
        Front(policies=front.policies, cost_p=(), right_p=front.right_p, static_right=1.0)
