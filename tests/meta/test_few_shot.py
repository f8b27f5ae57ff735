"""Many episodes: every exit's accuracy, intervals, and what a policy spends."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

import dynext as dx
from dynext.errors import FitError, SourceError


@pytest.mark.parametrize("bn", ["frozen", "task"])
def test_it_answers_as_adapt_does(bn: str, digit_net, digit_samples) -> None:
    episodes = dx.data.Episodes(rows=digit_samples[1], way=3, shot=2, query=4)
    few_shot = dx.meta.evaluate_episodes(digit_net, episodes, count=3, bn=bn, progress=False)
    wanted = []
    for i in range(3):
        net = dx.meta.adapt(digit_net, episodes[i].support, bn=bn, policy=dx.Policy.never(3)).net
        with torch.no_grad():
            wanted.append(net.all_exits(episodes[i].query.x))
    assert_close(few_shot.table.logits_nek, torch.cat(wanted), rtol=1e-4, atol=1e-4)
    assert few_shot.episode_n.tolist() == [0] * 12 + [1] * 12 + [2] * 12


def test_means_and_intervals_are_over_episodes(digit_net, digit_samples) -> None:
    episodes = dx.data.Episodes(rows=digit_samples[1], way=3, shot=2, query=4)
    few_shot = dx.meta.evaluate_episodes(digit_net, episodes, count=8, progress=False)
    right = few_shot.table.right_ne.double().view(8, 12, 3).mean(1).numpy()
    for e, share in enumerate(few_shot.accuracy_e):
        assert share.mean == pytest.approx(right[:, e].mean())
        assert share.half == pytest.approx(1.96 * right[:, e].std(ddof=1) / 8**0.5)
    policy = dx.choose(few_shot.table, max_drop=0.1, rule="plain", temperature=dx.calibrate(few_shot.table))
    share, spent = few_shot.under(policy)
    outcome = dx.simulate(few_shot.table, policy)
    assert share.mean == pytest.approx(outcome.accuracy)
    assert spent == pytest.approx(1 - outcome.saved)
    assert "±" in str(share)


def test_what_is_no_set_of_episodes(digit_net, digit_samples) -> None:
    ways = [dx.data.Episodes(rows=digit_samples[1], way=way, shot=1, query=2)[0] for way in (2, 3)]
    with pytest.raises(FitError, match="episodes of 2 and of 3 classes"):
        dx.meta.evaluate_episodes(digit_net, ways, progress=False)
    with pytest.raises(SourceError, match="there is not one episode"):
        dx.meta.evaluate_episodes(digit_net, [], progress=False)
    with pytest.raises(SourceError, match="count=0"):
        dx.meta.evaluate_episodes(digit_net, ways, count=0)
