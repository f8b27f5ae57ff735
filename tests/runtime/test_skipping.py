"""Skipping, executed: what `run` does is what masks would do, at the price that the table predicts."""

from dataclasses import replace

import pytest
import torch
from gated_nets import LEARNED, WITH_BLOCKS, gated_net, samples_for, source_of
from torch import nn
from torch.testing import assert_close

from dynext.graph import stages_by_hand
from dynext.graph.macs import counting
from dynext.modules.exits import default_heads
from dynext.modules.gates import random_gates, recurrent_gates, static_gates
from dynext.net.attach import attach, attach_gates
from dynext.net.collect import collect
from dynext.net.dynamic_net import DynamicNet
from dynext.net.measure import measure
from dynext.policy.confidence import Learned, Measure, confidences
from dynext.policy.policy import Policy
from dynext.policy.table import simulate
from dynext.testing import check_gates, halving_rule

KINDS = sorted(LEARNED)


def halving_policy(net: DynamicNet, x: torch.Tensor) -> tuple[Policy, torch.Tensor]:
    """About half of the samples skip at each gate and leave at each exit; and the samples that sit on no threshold."""
    keep_g, clear = halving_rule(net, x)
    table = collect(net, source_of(x), keep=keep_g)
    sure_ne = table.logits_nek.softmax(-1).amax(-1)[:, :-1]
    threshold_e = sure_ne.sort(dim=0).values[len(x) // 2 - 1 :][:2].mean(0)
    clear = clear[((sure_ne - threshold_e).abs() > 1e-5).all(1)[clear]]
    policy = Policy(threshold_e=(*threshold_e.tolist(), 0.0), temperature_e=(1.0,) * net.num_exits, keep_g=keep_g)
    return policy, clear


@pytest.mark.parametrize("name", WITH_BLOCKS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_samples_in_any_order_and_as_masks_say(name: str, kind: str) -> None:
    net = gated_net(name, kind)
    check_gates(net, samples_for(net))


@pytest.mark.parametrize("name", WITH_BLOCKS)
@pytest.mark.parametrize("kind", KINDS)
def test_predicted_macs_are_observed_macs(name: str, kind: str) -> None:
    """The flagship, with exits and gates in one policy: the table, the run, and what torch counts of a sample
    alone.
    """
    net = gated_net(name, kind)
    x = samples_for(net)
    policy, clear = halving_policy(net, x)
    assert len(clear) >= 6
    predicted = simulate(collect(net, source_of(x), keep=policy.keep_g), policy)
    observed = net.run(x, policy)
    assert predicted.macs_n[clear].tolist() == observed.macs[clear].tolist()
    assert predicted.exit_n[clear].tolist() == observed.exit[clear].tolist()
    assert len(observed.macs.unique()) > 1
    for i in clear[:4].tolist():
        with counting() as counted:
            net.run(x[i : i + 1], policy)
        assert counted.total() == int(observed.macs[i])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compact", ["auto", "always", "never"])
def test_gathering_changes_no_answer(kind: str, compact: str) -> None:
    net = gated_net(kind=kind)
    x = samples_for(net)
    policy, clear = halving_policy(net, x)
    whole = net.run(x, policy)
    if compact == "auto":
        net.cost = measure(net, rows=(1, 4, 16), budget_ms=0.5)
    other = net.run(x, policy, compact=compact)
    assert_close(whole.logits[clear], other.logits[clear], rtol=1e-4, atol=1e-5)
    for name in ("exit", "macs", "ran"):
        assert torch.equal(getattr(whole, name)[clear], getattr(other, name)[clear])


def numbers_given(net: DynamicNet) -> list[int]:
    """How many samples each gated stage is given from now on."""
    numbers: list[int] = []
    for s in net.gates.at:
        net.staged.stages[s].register_forward_hook(lambda module, given, out: numbers.append(len(given[0])))
    return numbers


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_is_run_for_its_samples_alone(kind: str) -> None:
    net = gated_net(kind=kind, exits=False)
    x = samples_for(net)
    keep_g, _ = halving_rule(net, x)
    policy = replace(Policy.never(1), keep_g=keep_g)
    numbers = numbers_given(net)
    ran = net.run(x, policy, compact="always").ran
    assert numbers == ran.sum(0).tolist()
    assert 0 < sum(numbers) < ran.numel()


def test_no_sample_skips_and_every_sample_skips() -> None:
    net = gated_net(exits=False)
    x = samples_for(net)
    static = net.run(x, Policy.never(1))
    assert static.ran is None
    assert static.macs.tolist() == [net.trunk_macs_e[-1]] * len(x)
    nobody = net.run(x, Policy.skipping(1, net.num_gates, keep=0.0))
    assert_close(nobody.logits, net(x), rtol=1e-5, atol=1e-5)
    assert nobody.ran.all()
    assert nobody.macs.tolist() == [net.trunk_macs_e[-1] + sum(net.gates.macs_g)] * len(x)
    bare = attach_gates(net, static_gates([False] * net.num_gates))
    numbers = numbers_given(bare)
    everybody = bare.run(x, Policy.skipping(1, net.num_gates))
    assert numbers == []
    assert not everybody.ran.any()
    gone = sum(net.staged.stages[s].macs for s in net.gates.at)
    assert everybody.macs.tolist() == [net.trunk_macs_e[-1] - gone] * len(x)
    live = (x,)
    for stage in (stage for stage in net.staged.stages if not stage.skippable):
        live = stage(*live)
    assert_close(everybody.logits, live[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_one_sample_and_none(kind: str) -> None:
    net = gated_net(kind=kind)
    policy = replace(Policy.never(net.num_exits), keep_g=(0.5,) * net.num_gates)
    alone = net.run(samples_for(net, 1), policy)
    assert (alone.logits.shape, alone.ran.shape) == ((1, net.num_classes), (1, net.num_gates))
    none = net.run(samples_for(net, 0), policy)
    assert (none.logits.shape, none.ran.shape) == ((0, net.num_classes), (0, net.num_gates))


@pytest.mark.parametrize("kind", KINDS)
def test_gates_that_say_nan_leave_nothing_out(kind: str) -> None:
    net = gated_net(kind=kind, exits=False)
    with torch.no_grad():
        for parameter in net.gates.parameters():
            parameter.fill_(torch.nan)
    x = samples_for(net)
    prediction = net.run(x, Policy.skipping(1, net.num_gates, keep=0.9))
    assert prediction.ran.all()
    assert_close(prediction.logits, net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_of_nan_runs_everything_and_disturbs_no_other(kind: str) -> None:
    net = gated_net(kind=kind)
    x = samples_for(net)
    policy, clear = halving_policy(net, x)
    clean, dirty = net.run(x, policy), x.clone()
    dirty[3] = torch.nan
    prediction = net.run(dirty, policy)
    assert prediction.ran[3].all()
    assert int(prediction.exit[3]) == net.num_exits - 1
    others = [i for i in clear.tolist() if i != 3]
    assert torch.equal(prediction.ran[others], clean.ran[others])
    assert_close(prediction.logits[others], clean.logits[others], rtol=1e-4, atol=1e-5)


def test_a_gate_that_is_off_is_not_asked() -> None:
    net = gated_net(kind="feedforward", exits=False)
    asked = []
    for g, gate in enumerate(net.gates.body.gates):
        gate.register_forward_hook(lambda *_, g=g: asked.append(g))
    x = samples_for(net)
    prediction = net.run(x, replace(Policy.never(1), keep_g=(None, 0.0, None)))
    assert asked == [1]
    assert prediction.macs.tolist() == [net.trunk_macs_e[-1] + net.gates.macs_g[1]] * len(x)
    assert net.run(x, replace(Policy.never(1), keep_g=(None,) * 3)).ran is None
    assert asked == [1]


def is_view(tensor: torch.Tensor) -> bool:
    return tensor.untyped_storage().nbytes() > tensor.nbytes


def test_gates_that_decide_at_once_bring_samples_of_a_path_together() -> None:
    net = attach_gates(gated_net(exits=False), random_gates(0.5))
    x = samples_for(net, 32)
    given = []
    for s in net.gates.at:
        net.staged.stages[s].register_forward_pre_hook(lambda module, live: given.append(is_view(live[0])))
    ran = net.run(x, Policy.skipping(1, net.num_gates), compact="always").ran
    assert len(ran.unique(dim=0)) == 2**net.num_gates
    assert given[0], "the samples of the first gated stage lie side by side: a view, nothing is gathered"


def test_stages_that_exits_cut_off_are_not_reported_as_run() -> None:
    net = gated_net()
    x = samples_for(net)
    policy = replace(Policy.always(net.num_exits), keep_g=(0.0,) * net.num_gates)
    prediction = net.run(x, policy)
    behind = [s > net.exits[0].after for s in net.gates.at]
    assert any(behind)
    assert prediction.ran.tolist() == [[not late for late in behind]] * len(x)


def test_the_callers_samples_are_never_written_into() -> None:
    """The first stage can be skipped, or hands its input on as it is: what is written into must be a copy."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = [nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)]
    net = attach_gates(attach(stages_by_hand(parts, torch.zeros(2, 8)), None, at=[]), recurrent_gates(openness=0.0))
    assert net.gates.at == (0, 1, 2)
    x = samples_for(net)
    check_gates(net, x)
    for compact in ("always", "never"):
        kept = x.clone()
        net.run(x, replace(Policy.never(1), keep_g=halving_rule(net, x)[0]), compact=compact)
        assert torch.equal(kept, x)


def test_several_live_tensors_are_skipped_together() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x + self.a(y), y + self.b(x)

    class Apart(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, -x

    class Together(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.last(x * y)

    staged = stages_by_hand([Apart(), Both(), Both(), Together()], torch.zeros(2, 8))
    net = attach_gates(staged, recurrent_gates(openness=0.0))
    assert net.gates.at == (1, 2)
    check_gates(net, samples_for(net))


def test_a_deadline_is_kept_with_gates_too() -> None:
    net = gated_net()
    x = samples_for(net)
    policy = Policy.skipping(net.num_exits, net.num_gates)
    late = net.run(x, policy, deadline_ms=0)
    assert late.exit.tolist() == [0] * len(x)
    table = collect(net, source_of(x), keep=policy.keep_g)
    assert_close(late.logits, table.logits_nek[:, 0], rtol=1e-4, atol=1e-5)


def test_measured_costs_decide_when_to_gather() -> None:
    net = gated_net(exits=False)
    cost = measure(net, rows=(1, 16), budget_ms=0.5)
    free = replace(cost, stage_ms=tuple((1.0, 1.0) for _ in cost.stage_ms))
    dear = replace(cost, stage_ms=tuple((1.0, 400.0) for _ in cost.stage_ms))
    assert not free.skipping_pays(1, carried=16, running=8)
    assert dear.skipping_pays(1, carried=16, running=8)
    x = samples_for(net)
    policy = replace(Policy.never(1), keep_g=halving_rule(net, x)[0])
    numbers = numbers_given(net)
    for table, gathers in ((free, False), (dear, True)):
        net.cost = table
        numbers.clear()
        ran = net.run(x, policy).ran.sum(0).tolist()
        assert numbers == (ran if gathers else [len(x)] * len(ran))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_other_precisions(kind: str, dtype: torch.dtype) -> None:
    net = gated_net(kind=kind).to(dtype)
    x = samples_for(net).to(dtype)
    prediction = net.run(x, Policy.skipping(net.num_exits, net.num_gates, keep=0.0))
    assert prediction.logits.dtype == dtype
    assert_close(prediction.logits, net(x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "confidence",
    ["patience", Learned(weight_e=((2.0, 1.0, -1.0, 0.5), (1.0, -1.0, 3.0, 0.0), (0.0, 2.0, 1.0, -1.0)))],
    ids=str,
)
def test_gates_go_with_every_measure_of_confidence(kind: str, confidence: Measure) -> None:
    """Gates that decide at once put samples in another order; what exits remember or have learned follows them."""
    gates = gated_net(kind=kind)
    heads = default_heads(gates.num_classes, hidden=64, separable=0)
    exits = attach(gates.staged, heads, at=gates.staged.skippable)
    net = DynamicNet(gates.staged, exits.exits, gates.gates).eval()
    x = samples_for(net, 24)
    keep_g, clear = halving_rule(net, x)
    table = collect(net, source_of(x), keep=keep_g)
    sure_ne = confidences(table.logits_nek, confidence)
    threshold_e = (0.4,) * 3 if confidence == "patience" else sure_ne.sort(dim=0).values[15:17].mean(0)[:3].tolist()
    clear = clear[((sure_ne[:, :3] - torch.tensor(threshold_e)).abs() > 1e-5).all(1)[clear]]
    policy = Policy(
        confidence=confidence, threshold_e=(*threshold_e, 0.0), temperature_e=(1.0,) * 4, keep_g=table.keep_g
    )
    assert Policy.from_json(policy.to_json()) == policy
    predicted, prediction = simulate(table, policy), net.run(x, policy)
    assert len(prediction.exit[clear].unique()) > 2
    assert predicted.exit_n[clear].tolist() == prediction.exit[clear].tolist()
    assert predicted.macs_n[clear].tolist() == prediction.macs[clear].tolist()
