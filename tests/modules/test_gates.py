"""Each kind of gate against its NumPy rebuild; what it costs; where it fits."""

import numpy as np
import pytest
import torch
from reference import gates as slow
from torch import nn
from torch.testing import assert_close
from zoo import NETS

from dynext.errors import PolicyError, SplitError
from dynext.graph import stages_by_hand
from dynext.graph.macs import counting
from dynext.graph.split import split
from dynext.modules.exits import default_heads
from dynext.modules.gates import (
    Gates,
    GateSpec,
    build_gates,
    feedforward_gates,
    policy_gates,
    random_gates,
    recurrent_gates,
    static_gates,
)
from dynext.modules.skip_rule import runs
from dynext.net.attach import attach, attach_gates
from dynext.net.measure import measure
from dynext.seeding import seeded

TAPS = [(6, 7, 7), (6, 4, 4)]


def gates_of(gates: GateSpec, taps: list[tuple[int, ...]] = TAPS, shape: tuple[int, ...] = (3, 12, 12)) -> Gates:
    """Gates with statistics and weights away from their defaults."""
    spec = {**gates, "at": list(range(1, len(taps) + 1)), "taps": [list(tap) for tap in taps], "input": list(shape)}
    with seeded(0), torch.no_grad():
        built = build_gates(spec).eval()
        for name, tensor in built.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) + 0.1 if "var" in name else 0.5 * torch.randn(tensor.shape))
    return built


def state_of(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in module.state_dict().items()}


def samples(*shape: int, n: int = 3) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1))


def probability(logit: torch.Tensor) -> np.ndarray:
    return logit.detach().double().sigmoid().numpy()


@pytest.mark.parametrize("variant", ["I", "II"])
def test_feedforward_gates_are_the_papers(variant: str) -> None:
    gates = gates_of(feedforward_gates(variant))
    for g, tap in enumerate(TAPS):
        x = samples(*tap)
        logit, memory = gates.ask(g, x, gates.begin(samples(3, 12, 12)))
        assert logit.shape == (3,)
        assert memory == ()
        expected = [slow.feedforward(sample.double().numpy(), state_of(gates.body.gates[g]), variant) for sample in x]
        np.testing.assert_allclose(probability(logit), expected, rtol=1e-4)


def test_feedforward_gates_see_channels_last_maps_and_tokens() -> None:
    last, first = gates_of(feedforward_gates("I"), [(4, 4, 6)]), gates_of(feedforward_gates("I"), [(6, 4, 4)])
    x = samples(4, 4, 6)
    inner = zip(last.body.gates[0][1:].state_dict().values(), first.body.gates[0].state_dict().values(), strict=True)
    with torch.no_grad():
        for ours, theirs in inner:
            theirs.copy_(ours)
    assert_close(last.ask(0, x, ())[0], first.ask(0, x.permute(0, 3, 1, 2), ())[0])
    tokens = gates_of(feedforward_gates(), [(5, 8)])
    x = samples(5, 8)
    expected = [slow.feedforward_tokens(sample.double().numpy(), state_of(tokens.body.gates[0])) for sample in x]
    np.testing.assert_allclose(probability(tokens.ask(0, x, ())[0]), expected, rtol=1e-4)
    vectors = gates_of(feedforward_gates(), [(8,)])
    assert vectors.ask(0, samples(8), ())[0].shape == (3,)


def test_recurrent_gates_are_the_papers_and_remember_only_what_they_are_handed() -> None:
    gates = gates_of(recurrent_gates())
    x = [samples(*tap) for tap in TAPS]
    memory = gates.begin(samples(3, 12, 12))
    probability_g = []
    for g, tap in enumerate(x):
        logit, memory = gates.ask(g, tap, memory)
        probability_g.append(probability(logit))
    state = state_of(gates.body)
    expected = [slow.recurrent([tap[i].double().numpy() for tap in x], state) for i in range(3)]
    np.testing.assert_allclose(np.stack(probability_g, 1), expected, rtol=1e-4)
    again, _ = gates.ask(0, x[0], gates.begin(samples(3, 12, 12)))
    np.testing.assert_allclose(probability(again), probability_g[0])
    assert gates.state_dict().keys() == gates_of(recurrent_gates()).state_dict().keys()


def test_the_policy_network_is_the_papers() -> None:
    gates = gates_of(policy_gates(width=4))
    x = samples(3, 12, 12)
    memory = gates.begin(x)
    expected = [slow.policy(sample.double().numpy(), state_of(gates.body.net)) for sample in x]
    np.testing.assert_allclose(probability(memory[0]), expected, rtol=1e-4)
    for g in range(2):
        assert_close(gates.ask(g, x, memory)[0], memory[0][:, g])
    small = gates_of(policy_gates(width=4, side=6))
    pooled = x.unflatten(3, (6, 2)).unflatten(2, (6, 2)).mean((3, 5))
    expected = [slow.policy(sample.double().numpy(), state_of(small.body.net)) for sample in pooled]
    np.testing.assert_allclose(probability(small.begin(x)[0]), expected, rtol=1e-4)


def test_static_gates_are_the_same_for_all() -> None:
    gates = gates_of(static_gates([True, False]))
    assert gates.begin(samples(3, 12, 12))[0].sigmoid().tolist() == [[1.0, 0.0]] * 3
    assert not list(gates.state_dict())
    assert gates.at_once
    for share in (i / 50 for i in range(1, 50)):
        logit_g = gates_of(static_gates([share, share])).begin(samples(3, 12, 12))[0][0]
        assert bool(runs(logit_g, share).all()), "a share reaches itself"


def test_random_gates_keep_their_rates_and_decide_a_sample_alike() -> None:
    gates = gates_of(random_gates([0.25, 0.8], seed=3))
    x = samples(3, 12, 12, n=4000)
    ran = gates.begin(x)[0] > 0
    assert_close(ran.double().mean(0), torch.tensor([0.25, 0.8]).double(), rtol=0, atol=0.03)
    both = (ran[:, 0] & ran[:, 1]).double().mean()
    assert abs(float(both) - 0.25 * 0.8) < 0.03, "the gates of a sample are drawn independently"
    turned = torch.randperm(4000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(gates.begin(x[turned])[0] > 0, ran[turned])
    assert torch.equal(gates.begin(x[5:6])[0] > 0, ran[5:6])
    other = gates_of(random_gates([0.25, 0.8], seed=4)).begin(x)[0] > 0
    assert 0.3 < float((other == ran).double().mean()) < 0.9
    assert gates_of(random_gates(0.0)).begin(x)[0].max() == -torch.inf
    assert gates_of(random_gates(1.0)).begin(x)[0].min() == torch.inf


KINDS = {
    "ff1": feedforward_gates("I"),
    "ff2": feedforward_gates("II"),
    "recurrent": recurrent_gates(),
    "policy": policy_gates(width=4),
    "static": static_gates([True, False, True]),
    "random": random_gates(0.5),
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_sample_and_none(kind: str) -> None:
    staged = split(*NETS["residual"](), granularity="block")
    gates = attach_gates(staged, KINDS[kind]).gates
    for n in (1, 0):
        x = samples(*staged.input_shape, n=n)
        memory = gates.begin(x)
        for g, tap in enumerate(gates.spec["taps"]):
            logit, memory = gates.ask(g, x.new_zeros(n, *tap), memory)
            assert logit.shape == (n,)
            assert all(len(kept) == n for kept in memory)


@pytest.mark.parametrize("kind", KINDS)
def test_costs_are_what_torch_counts(kind: str) -> None:
    net = attach_gates(split(*NETS["residual"](), granularity="block"), KINDS[kind])
    x = samples(*net.staged.input_shape, n=1)
    with torch.no_grad(), counting() as start:
        memory = net.gates.begin(x)
    assert start.total() == net.gates.start_macs
    for g, tap in enumerate(net.gates.spec["taps"]):
        with torch.no_grad(), counting() as asked:
            _, memory = net.gates.ask(g, x.new_zeros(1, *tap), memory)
        assert asked.total() == net.gates.macs_g[g]
    free = kind in ("static", "random")
    assert (net.gates.start_macs + sum(net.gates.macs_g) == 0) is free
    assert net.gates.at_once is (free or kind == "policy")


@pytest.mark.parametrize("kind", ["ff1", "ff2", "recurrent", "policy"])
def test_untrained_gates_are_open(kind: str) -> None:
    net = attach_gates(split(*NETS["residual"](), granularity="block"), KINDS[kind])
    x = samples(*net.staged.input_shape, n=16)
    logit, _ = net.gates.ask(0, net.staged.stages[0](x)[0] if net.gates.at[0] else x, net.gates.begin(x))
    assert float((logit > 0).float().mean()) > 0.9


def test_attaching_copies_is_seeded_and_keeps_exits() -> None:
    staged = split(*NETS["residual"](), granularity="block")
    net = attach(staged, default_heads(10), at=[1])
    net.cost = measure(net, rows=(1, 2), budget_ms=0.1)
    before = torch.get_rng_state()
    first, again, other = (attach_gates(net, recurrent_gates(), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert net.gates is None
    assert first.exit_names == net.exit_names
    assert first.cost == net.cost
    weights = [gated.gates.body.decide.weight for gated in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert all(parameter.any() for parameter in net.staged.parameters() if parameter.ndim > 1)
    replaced = attach_gates(again, static_gates([True] * 3))
    assert replaced.gates.spec["kind"] == "static"
    assert again.gates.spec["kind"] == "recurrent"


def test_gates_stand_where_asked() -> None:
    staged = split(*NETS["residual"](), granularity="block")
    assert attach_gates(staged, recurrent_gates()).gates.at == staged.skippable
    assert attach_gates(staged, recurrent_gates(), at=staged.skippable[1:]).num_gates == len(staged.skippable) - 1
    name = staged.stages[staged.skippable[-1]].name
    assert attach_gates(staged, recurrent_gates(), at=[name]).gates.at == staged.skippable[-1:]
    with pytest.raises(SplitError, match=r"is one name; give a list of them: at=\['"):
        attach_gates(staged, recurrent_gates(), at=name)
    with pytest.raises(SplitError, match=r"no sample may skip stage 0; stages to skip: layer1"):
        attach_gates(staged, recurrent_gates(), at=[0])
    with pytest.raises(SplitError, match=r"gates before no stage at all; name some of layer1"):
        attach_gates(staged, recurrent_gates(), at=[])
    with pytest.raises(SplitError, match="split it with granularity='block'"):
        attach_gates(split(*NETS["plain"]()), recurrent_gates())


@pytest.mark.parametrize("name", ["residual", "vit_like", "convnext_like", "root_tensors"])
@pytest.mark.parametrize("kind", ["ff1", "ff2", "recurrent", "policy"])
def test_gates_fit_whatever_has_blocks_to_skip(name: str, kind: str) -> None:
    net = attach_gates(split(*NETS[name](), granularity="block"), KINDS[kind])
    assert net.num_gates == len(net.staged.skippable) >= 2


def test_what_does_not_fit_is_refused() -> None:
    staged = split(*NETS["residual"](), granularity="block")
    with pytest.raises(SplitError, match=r"2 entries of 'run' for 3 gated stages; give one each"):
        attach_gates(staged, static_gates([True, False]))
    with pytest.raises(PolicyError, match=r"\[1.5\]; give probabilities to run a stage"):
        random_gates(1.5)
    with pytest.raises(PolicyError, match="variant 'III'; give 'I' or 'II'"):
        feedforward_gates("III")
    with pytest.raises(PolicyError, match="gates of kind 'oracle'; this version knows feedforward, recurrent"):
        build_gates({"kind": "oracle", "at": [1]})
    parts = [nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)]
    by_hand = stages_by_hand(parts, torch.zeros(2, 8))
    with pytest.raises(
        SplitError, match=r"a policy network takes images \[c h w\], the model expects samples of shape \(8,\)"
    ):
        attach_gates(by_hand, policy_gates())
    assert attach_gates(by_hand, recurrent_gates()).gates.at == (0, 1)
