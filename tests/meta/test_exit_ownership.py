"""Who owns what: by hand, by autograd, for tied parameters; the table; what is refused."""

from __future__ import annotations

import pytest
import torch
from meta_nets import assert_untouched, smooth_net, state_of, zoo_net

import dynext as dx
from dynext.errors import FitError
from dynext.meta.exit_tasks import separate, tasks
from dynext.net.cascade import cascade

FIRST = ("staged.stages.0.body.first.0.weight", "staged.stages.0.body.first.0.bias")
SECOND = ("staged.stages.1.body.second.0.weight", "staged.stages.1.body.second.0.bias")
LAST = ("staged.stages.2.body.linear.weight", "staged.stages.2.body.linear.bias")


def head(exit: int) -> tuple[str, ...]:
    net = smooth_net()
    return tuple(name for name, _ in net.named_parameters() if name.startswith(f"exits.{exit}."))


def test_each_exit_owns_its_head_and_shares_the_trunk_up_to_its_tap() -> None:
    claims = dx.meta.ownership(smooth_net()).claims
    assert [claim.exits for claim in claims] == [(0,), (1,), (2,)]
    assert [set(claim.owns) for claim in claims] == [set(head(0)), set(head(1)), set(LAST)]
    assert [set(claim.shares) for claim in claims] == [set(FIRST), {*FIRST, *SECOND}, {*FIRST, *SECOND}]


@pytest.mark.parametrize(
    ("adapts", "wanted"),
    [
        ("head", [head(0), head(1), LAST]),
        ("owned", [head(0), head(1), LAST]),
        ("classifier", [head(0)[-2:], head(1)[-2:], LAST]),
        ("used", [(*FIRST, *head(0)), (*FIRST, *SECOND, *head(1)), (*FIRST, *SECOND, *LAST)]),
    ],
)
def test_what_is_adapted(adapts: str, wanted: list[tuple[str, ...]]) -> None:
    claims = dx.meta.ownership(smooth_net(), adapts=adapts).claims
    assert [set(claim.adapts) for claim in claims] == [set(names) for names in wanted]


def test_a_group_of_exits_owns_what_no_other_uses() -> None:
    net = smooth_net()
    early, last = dx.meta.ownership(net, [[0, 1], [-1]], adapts="owned").claims
    assert set(early.owns) == {*head(0), *head(1)}
    assert set(last.owns) == set(LAST)
    (whole,) = dx.meta.ownership(net, [[0, 1, 2]]).claims
    assert set(whole.owns) == set(dict(net.named_parameters()))
    assert whole.shares == ()


def test_a_held_out_exit_is_still_somebody() -> None:
    """What a held-out exit uses is not owned by those that are trained."""
    claims = dx.meta.ownership(smooth_net(), [[0], [2]], adapts="owned").claims
    assert set(claims[1].owns) == set(LAST)
    assert set(SECOND) <= set(claims[1].shares)


@pytest.mark.parametrize("name", ["residual", "unet_like", "vit_like", "shared_weights"])
def test_used_parameters_are_those_that_gradients_reach(name: str) -> None:
    net = zoo_net(name).eval().requires_grad_(True)
    x = torch.randn(2, *net.staged.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for e, claim in enumerate(dx.meta.ownership(net, adapts="used").claims):
        net.zero_grad()
        taps, final = net.taps(x)
        (final if e == len(taps) else net.exits[e](taps[e])).sum().backward()
        reached = {name for name, p in net.named_parameters() if p.grad is not None}
        assert {*claim.owns, *claim.shares} == reached == set(claim.adapts)


def test_the_table_counts_numbers() -> None:
    owned = dx.meta.ownership(smooth_net())
    lines = str(owned).splitlines()
    assert lines[0].split() == ["task", "exits", "owns", "shares", "adapts", "of", "the", "net"]
    assert len(lines) == 4
    shared = 3 * 4 * 9 + 4
    owned = sum(owned.sizes[name] for name in head(0))
    assert lines[1].split()[:6] == ["0", "0", "(first)", f"{owned:,}", f"{shared:,}", f"{owned:,}"]


def test_tasks_are_episodes_times_exits() -> None:
    net = smooth_net()
    batch = dx.data.Batch(x=torch.zeros(3, 3, 8, 8), y=torch.arange(3))
    episode = dx.data.Episode(support=batch, query=batch, classes=(4, 5, 6))
    exits_as_tasks = tasks(net, [episode])
    episodes_as_tasks = tasks(net, [episode] * 2, exits=[range(3)], adapts="used")
    product = tasks(net, [episode] * 2, exits=[[0], [-1]])
    assert [task.exits for task in exits_as_tasks] == [(0,), (1,), (2,)]
    assert [task.exits for task in episodes_as_tasks] == [(0, 1, 2)] * 2
    assert [task.exits for task in product] == [(0,), (2,)] * 2
    assert product[0].episode.way == 3


def test_exits_that_adapt_nothing_in_common_are_taken_apart() -> None:
    net = smooth_net()
    apart = separate(net, dx.meta.ownership(net, [[0, 1], [2]]))
    assert [claim.exits for claim in apart] == [(0,), (1,), (2,)]
    assert [set(claim.adapts) for claim in apart] == [set(head(0)), set(head(1)), set(LAST)]
    (joined,) = separate(net, dx.meta.ownership(net, [[0, 1]], adapts="used"))
    assert joined.exits == (0, 1)


def test_nothing_is_touched() -> None:
    net = zoo_net("residual").train().requires_grad_(False)
    before, flags = state_of(net), [m.training for m in net.modules()]
    dx.meta.ownership(net)
    assert_untouched(net, before)
    assert flags == [m.training for m in net.modules()]
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    ("exits", "told"),
    [
        ([[3]], "exit 3 of a net with 3; give 0 to 2, or -1"),
        ([[0], []], "a task without an exit"),
        ([[0], [0, 1]], "one stands twice"),
        ([[2], [-1]], "one stands twice"),
    ],
)
def test_groups_that_are_none(exits: list[list[int]], told: str) -> None:
    with pytest.raises(FitError, match=told):
        dx.meta.ownership(smooth_net(), exits)


def test_cascades_and_unknown_words_are_refused() -> None:
    with pytest.raises(FitError, match="the net is a cascade .*'boost'"):
        dx.meta.ownership(cascade(smooth_net().float(), "boost"))
    with pytest.raises(FitError, match="adapts='body'; give one of head, classifier, owned, used"):
        dx.meta.ownership(smooth_net(), adapts="body")
