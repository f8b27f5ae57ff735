"""Meta-gradients: against the formulas, against finite differences, across engines, cached and not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from meta_nets import NETS, assert_same, assert_untouched, episode_tensors, meta_loss, smooth_net, state_of, zoo_net
from reference import meta as reference
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close

import dynext as dx
from dynext.errors import FitError
from dynext.meta.engines import engine_named
from dynext.meta.inner import NAMED, InnerLoop, Problem, loss_of
from dynext.meta.loss import MetaLoss, gradients
from dynext.meta.vmap import check_vmap, vectorized


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flat, self.linear = nn.Flatten(), nn.Linear(5, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.flat(x))


def linear_net() -> dx.DynamicNet:
    """The last exit is one linear layer; the formulas are known by hand."""
    model = Linear().double().eval()
    staged = dx.split(model, torch.zeros(1, 5, 1, dtype=torch.float64), after=["flat"])
    return dx.DynamicNet(staged, [])


@pytest.mark.parametrize("rule", ["second_order", "first_order", "reptile", "meta_sgd"])
def test_the_papers_formulas(rule: str) -> None:
    net = linear_net()
    draw = np.random.default_rng(0)
    W = net.staged.stages[-1].get_parameter("body.linear.weight")
    support, query = ((draw.normal(size=(n, 5)), draw.integers(0, 3, n)) for n in (7, 9))
    episode = [torch.from_numpy(t) for pair in (support, query) for t in pair]
    episode[0], episode[2] = episode[0][..., None], episode[2][..., None]
    start = W.detach().numpy().T
    inner = InnerLoop(steps=1 if rule == "meta_sgd" else 3, lr=0.7, learned_lr=rule == "meta_sgd",
                      rule="second_order" if rule == "meta_sgd" else rule)  # fmt: skip
    loss = meta_loss(net, inner)
    (gradient,) = gradients(loss, *episode).values()
    if rule == "meta_sgd":
        wanted, by_lr = reference.meta_sgd_gradient(start, support, query, np.full(start.shape, 0.7))
        (rate,) = loss.rates.values()
        assert_close(torch.autograd.grad(loss(*episode), rate)[0], torch.from_numpy(by_lr.T))
    elif rule == "reptile":
        wanted = reference.reptile_gradient(start, support, 0.7, 3)
    else:
        formula = reference.maml_gradient if rule == "second_order" else reference.first_order_gradient
        wanted = formula(start, support, query, 0.7, 3)
    assert_close(gradient, torch.from_numpy(wanted.T))


def by_difference(loss: MetaLoss, episode, direction: dict[str, torch.Tensor], h: float = 1e-5) -> float:
    """The derivative of the meta-loss along a direction of the parameters."""
    named = dict(loss.net.named_parameters())
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for name, d in direction.items():
                named[name].add_(d, alpha=sign * h)
        values.append(float(loss(*episode).detach()))
        with torch.no_grad():
            for name, d in direction.items():
                named[name].add_(d, alpha=-sign * h)
    return (values[0] - values[1]) / (2 * h)


@pytest.mark.parametrize("adapts", ["head", "classifier", "owned", "used"])
@pytest.mark.parametrize(("norm", "bn"), [(None, "frozen"), (nn.BatchNorm2d, "task"), (nn.BatchNorm2d, "frozen")])
def test_finite_differences(adapts: str, norm, bn: str) -> None:
    net = smooth_net() if norm is None else smooth_net(norm)
    loss = meta_loss(net, InnerLoop(adapts=adapts, bn=bn, steps=2, lr=0.3))
    episode = episode_tensors(3)
    grads = gradients(loss, *episode)
    draw = torch.Generator().manual_seed(1)
    direction = {name: torch.randn(g.shape, generator=draw, dtype=g.dtype) for name, g in grads.items()}
    along = sum(float((grads[name] * direction[name]).sum()) for name in grads)
    assert along == pytest.approx(by_difference(loss, episode, direction), rel=1e-5)


@pytest.mark.parametrize(("adapts", "rule"), [("head", "second_order"), ("classifier", "second_order"),
                                              ("owned", "first_order")])  # fmt: skip
@pytest.mark.parametrize("name", NETS)
def test_cached_trunk_features_change_nothing(name: str, rule: str, adapts: str) -> None:
    net = NETS[name]()
    episode = episode_tensors(net.num_classes)
    inner = InnerLoop(adapts=adapts, rule=rule, steps=2)
    cached, whole = meta_loss(net, inner), meta_loss(net, inner, cached=False)
    if name != "shared weights":
        assert max(claim.learner.begin for claim in cached.claims) > 0
    assert_same(gradients(cached, *episode), gradients(whole, *episode))


def test_exits_of_one_task_are_taken_apart_where_that_is_exact() -> None:
    net = zoo_net("residual")
    episode = episode_tensors(10)
    alone, together = (meta_loss(net, InnerLoop(), exits=exits) for exits in (None, [[0, 1, 2]]))
    assert len(together.claims) == 3
    assert_same(gradients(together, *episode), gradients(alone, *episode))
    joined = meta_loss(net, InnerLoop.of("maml"), exits=[[0, 1, 2]])
    assert [claim.learner.numbers for claim in joined.claims] == [(0, 1, 2)]


@pytest.mark.parametrize("rule", ["second_order", "first_order"])
@pytest.mark.parametrize(("norm", "bn"), [(lambda c: nn.GroupNorm(2, c), "task"), (nn.BatchNorm2d, "frozen"),
                                          (lambda c: nn.BatchNorm2d(c, affine=False), "task")])  # fmt: skip
def test_vmap_agrees_with_the_loop_where_it_is_allowed(norm, bn: str, rule: str) -> None:
    net = smooth_net(norm, dx.heads.pooled_heads(3))
    loss = meta_loss(net, InnerLoop(adapts="used", rule=rule, bn=bn, steps=2))
    episodes = [episode_tensors(3, seed=seed) for seed in range(3)]
    columns = [torch.stack(column) for column in zip(*episodes, strict=True)]
    own = list(net.parameters())
    at_once = torch.autograd.grad(vectorized(loss)(*columns).sum(), own)
    looped = torch.autograd.grad(torch.stack([loss(*episode) for episode in episodes]).sum(), own)
    for a, b in zip(at_once, looped, strict=True):
        assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["BatchNorm2d", "InstanceNorm2d", "LayerNorm"])
def test_vmap_is_refused_where_it_is_silently_wrong(kind: str) -> None:
    norm = {"BatchNorm2d": nn.BatchNorm2d, "InstanceNorm2d": lambda c: nn.InstanceNorm2d(c, affine=True)}
    net = smooth_net() if kind == "LayerNorm" else smooth_net(norm[kind], dx.heads.pooled_heads(3))
    with pytest.raises(FitError, match=f"is a {kind} with a scale .* wrong second-order gradients"):
        vectorized(meta_loss(net, InnerLoop()))
    check_vmap(net, InnerLoop(rule="first_order"))
    with pytest.raises(FitError, match="vmap does first- and second-order loops"):
        check_vmap(net, InnerLoop.of("meta_sgd"))


def test_layer_norm_under_vmap_is_wrong_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a version of torch gets it right, the refusal can go. The loop agrees with finite differences."""
    net = smooth_net()
    loss = meta_loss(net, InnerLoop(adapts="used", steps=2), exits=[[0]])
    monkeypatch.setattr("dynext.meta.vmap.check_vmap", lambda *_: None)
    episode = episode_tensors(3)
    weight = net.staged.stages[0].get_parameter("body.first.0.weight")
    (at_once,) = torch.autograd.grad(vectorized(loss)(*(t[None] for t in episode)).sum(), weight)
    (looped,) = torch.autograd.grad(loss(*episode), weight)
    assert not torch.allclose(at_once, looped, rtol=1e-4, atol=0)


def test_a_module_in_two_places_is_put_back() -> None:
    net = zoo_net("shared_weights")
    before = {id(p) for p in net.parameters()}
    gradients(meta_loss(net, InnerLoop(adapts="used")), *episode_tensors(10))
    assert {id(p) for p in net.parameters()} == before
    assert all(p.is_leaf for p in net.parameters())


@pytest.mark.parametrize("bn", ["task", "frozen", "per_step"])
def test_no_flag_buffer_or_generator_is_touched(bn: str) -> None:
    net = zoo_net("residual").train()
    net.staged.stages[0].eval()
    before, flags, state = state_of(net), [m.training for m in net.modules()], torch.get_rng_state()
    gradients(meta_loss(net, InnerLoop(bn=bn)), *episode_tensors(10))
    assert_untouched(net, before)
    assert flags == [m.training for m in net.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert all(m.track_running_stats for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_statistics_of_each_step_are_gathered_apart() -> None:
    net = smooth_net(nn.BatchNorm2d)
    loss = meta_loss(net, InnerLoop(adapts="used", bn="per_step", steps=2, lr=0.5))
    episode = episode_tensors(3)
    loss(*episode)
    name = "staged.stages.0.body.first.1.running_mean"
    means = torch.stack([loss.statistics.at(step)[name] for step in range(3)])
    first = net.staged.stages[0].body.get_submodule("first.0")(episode[0]).mean((0, 2, 3))
    # Each of the three tasks' first passes over the support, momentum .1, from 0.
    assert_close(means[0], first * (1 - 0.9**3))
    assert not torch.allclose(means[1], means[0])
    assert not torch.allclose(means[2], means[0])


@pytest.mark.parametrize("name", sorted(NAMED))
def test_inner_loops_by_name(name: str) -> None:
    inner = InnerLoop.of(name, lr=0.25)
    assert inner.lr == 0.25
    net = smooth_net()
    loss = meta_loss(net, inner)(*episode_tensors(3))
    assert loss.isfinite()
    assert (
        torch.autograd.grad(loss, net.exits[0].classifier.weight, allow_unused=True)[0] is None or name != "prototypes"
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rule": "third"}, "rule='third'; give one of second_order, first_order, reptile, prototypes"),
        ({"adapts": "all"}, "adapts='all'; give one of head"),
        ({"bn": "train"}, "bn='train'; give one of task"),
        ({"steps": 0}, "steps=0; an inner loop takes 1 or more"),
        ({"lr": 0.0}, "lr=0.0; give a positive step size"),
        ({"rule": "reptile", "learned_lr": True}, "no gradient reaches step sizes with rule='reptile'"),
    ],
)
def test_inner_loops_that_make_no_sense(given: dict, told: str) -> None:
    with pytest.raises(FitError, match=told):
        InnerLoop(**given)


def test_engines_that_cannot_do_it_say_so() -> None:
    net = smooth_net()
    with pytest.raises(FitError, match="no inner loop 'mamml'; give one of heads, maml"):
        InnerLoop.of("mamml")
    with pytest.raises(FitError, match="no engine 'jax'; give one of dynext, higher, learn2learn, vmap"):
        meta_loss(net, InnerLoop(), engine="jax")
    for inner in (InnerLoop.of("reptile"), replace(InnerLoop(), bn="per_step")):
        with pytest.raises(FitError, match="is done by our own loop alone; leave engine='higher' out"):
            meta_loss(net, inner, engine="higher")


def by_hand(problem: Problem, inner: InnerLoop) -> torch.Tensor:
    """A foreign engine, of torch.func alone."""
    weights = dict(problem.learner.named_parameters())
    for _ in range(inner.steps):
        loss = loss_of(functional_call(problem.learner, weights, problem.support), problem.support_y)
        wanted = {name: weights[name] for name in problem.adapted}
        slopes = torch.autograd.grad(loss, list(wanted.values()), create_graph=True)
        moved = {n: w - problem.rate(n) * g for (n, w), g in zip(wanted.items(), slopes, strict=True)}
        weights = {**weights, **moved}
    return loss_of(functional_call(problem.learner, weights, problem.query), problem.query_y)


def test_an_engine_of_ones_own_gives_the_same_gradients() -> None:
    net = smooth_net()
    episode = episode_tensors(net.num_classes)
    inner = InnerLoop(steps=2, lr=0.1)
    wanted = gradients(meta_loss(net, inner), *episode)
    own = gradients(meta_loss(net, inner, engine=by_hand), *episode)
    assert own.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert_close(own[name], gradient)


def test_what_an_engine_may_not_give() -> None:
    net = smooth_net()
    episode = episode_tensors(net.num_classes)
    for wrong, told in ((lambda problem, inner: 1.0, "a float"), (lambda problem, inner: problem.query[0], "a tensor")):
        with pytest.raises(FitError, match=f"gave {told}.*; give the query loss after the inner steps"):
            meta_loss(net, InnerLoop(), engine=wrong)(*episode)
    with pytest.raises(FitError, match="prototypes take no gradient step"):
        engine_named(by_hand, InnerLoop.of("prototypes"))
