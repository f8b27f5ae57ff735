"""What is recorded while exits are aligned: spread, rank, and gradients that pull apart."""

import numpy as np
import pytest
import torch
from lightly.utils.debug import std_of_l2_normalized
from reference import alignment as slow

from dynext.align.monitor import Monitor, agreement, collapsed, effective_rank, spread, take_snapshot

SPHERE = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0))
POINT = torch.ones(50, 6) + 1e-9 * torch.randn(50, 6)
LINE = torch.linspace(-1, 1, 50)[:, None] * torch.ones(6)


def test_spread_is_one_on_a_sphere_and_zero_in_a_point() -> None:
    assert spread(SPHERE) == pytest.approx(1, abs=0.02)
    assert spread(100 * SPHERE) == pytest.approx(spread(SPHERE))
    assert spread(POINT) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("b", [2, 40])
def test_spread_is_lightlys_but_for_the_scale_and_the_size_of_the_batch(b: int) -> None:
    z = SPHERE[:b].double()
    assert spread(z) == pytest.approx(float(std_of_l2_normalized(z)) * (6 * (b - 1) / b) ** 0.5)


def test_rank_is_the_papers() -> None:
    z = (SPHERE[:40] * torch.tensor([1.0, 0.5, 0.1, 0.0, 0.0, 2.0])).double()
    assert effective_rank(z) == pytest.approx(slow.effective_rank(z.numpy()))
    assert effective_rank(SPHERE) == pytest.approx(6, abs=0.05)
    assert effective_rank(LINE) == pytest.approx(1, abs=1e-6)
    assert effective_rank(torch.ones(50, 6)) == 0.0


def test_what_has_collapsed_is_told() -> None:
    snapshot = take_snapshot(0, torch.tensor(1.0), torch.tensor(2.0), [SPHERE, POINT, LINE, torch.zeros(50, 6)], 0.5)
    assert collapsed(snapshot) == (False, True, True, True)
    few = take_snapshot(
        0, torch.tensor(1.0), torch.tensor(2.0), [SPHERE[:2], POINT[:2]], 0.5
    )  # two samples make a line
    assert collapsed(few) == (False, True)
    assert (snapshot.classification, snapshot.alignment, snapshot.agreement) == (1.0, 2.0, 0.5)


def test_agreement_is_the_cosine_of_the_gradients() -> None:
    w, b = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor(3.0, requires_grad=True)
    other = torch.tensor(1.0, requires_grad=True)
    first, second = (w * torch.tensor([1.0, 3.0])).sum() + other, (w * torch.tensor([2.0, -1.0])).sum() + b
    one, two = np.array([1.0, 3.0, 0.0]), np.array([2.0, -1.0, 1.0])
    expected = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
    assert agreement(first, second, [w, b]) == pytest.approx(expected)
    assert agreement(first, first, [w]) == pytest.approx(1)
    assert agreement(first, -first, [w]) == pytest.approx(-1)
    assert agreement(first, torch.tensor(1.0), [w]) == 0.0
    assert agreement(other, b, [w]) == 0.0


@pytest.mark.parametrize("drop", [True, False])
def test_a_term_that_pulls_the_other_way_is_dropped_if_asked(drop: bool) -> None:
    w = torch.tensor(1.0, requires_grad=True)
    monitor = Monitor()
    together, cosine = monitor.combine(w, 2 * w, 0.5, [w], drop=drop)
    assert (float(together.detach()), cosine, monitor.dropped) == (2.0, pytest.approx(1), 0)
    apart, cosine = monitor.combine(w, -2 * w, 0.5, [w], drop=drop)
    assert cosine == pytest.approx(-1)
    assert float(apart.detach()) == (1.0 if drop else 0.0)
    assert monitor.dropped == int(drop)


def test_a_resumed_monitor_knows_what_was_recorded() -> None:
    monitor = Monitor(dropped=3)
    monitor.snapshots.append(take_snapshot(7, torch.tensor(1.0), torch.tensor(2.0), [SPHERE, LINE], -0.5))
    again = Monitor()
    again.resume(monitor.state())
    assert (again.snapshots, again.dropped) == (monitor.snapshots, 3)
