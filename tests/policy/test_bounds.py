import numpy as np
import pytest
from reference import bounds as slow
from torch.testing import assert_close

from dynext.policy.bounds import lower_bound, upper_bound


@pytest.mark.parametrize("delta", [0.05, 0.001])
def test_bounds_equal_their_definition(delta):
    for hit, n in [(0, 9), (1, 9), (5, 9), (9, 9), (48, 50), (1, 1)]:
        assert_close(lower_bound(hit, n, delta).item(), slow.lower_bound(hit, n, delta), rtol=1e-7, atol=1e-9)
        assert_close(upper_bound(hit, n, delta).item(), 1 - slow.lower_bound(n - hit, n, delta), rtol=1e-7, atol=1e-9)


def test_without_rows_nothing_is_known():
    assert (lower_bound(0, 0, 0.05).item(), upper_bound(0, 0, 0.05).item()) == (0, 1)


def test_bounds_are_wrong_no_more_often_than_delta():
    draw = np.random.default_rng(0)
    for share in (0.06, 0.3):
        missed = upper_bound(draw.binomial(60, share, 20_000), 60, 0.05) < share
        assert 0.02 < missed.mean() <= 0.053
