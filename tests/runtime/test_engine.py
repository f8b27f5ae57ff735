"""Execution: the invariants of `run` over the zoo, and the flagship equality."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import NETS as ZOO

from dynext.data.samples import Samples
from dynext.errors import PolicyError, SourceError
from dynext.graph.macs import counting
from dynext.graph.split import split
from dynext.modules.exits import default_heads
from dynext.net.attach import attach
from dynext.net.collect import collect
from dynext.net.dynamic_net import DynamicNet
from dynext.net.measure import measure
from dynext.policy.batch_budget import plan_batch
from dynext.policy.policy import Policy
from dynext.policy.table import simulate
from dynext.runtime.batch import run_batch
from dynext.types import InputSpec

NAMES = sorted(ZOO)


def dynamic(name: str, seed: int = 0) -> tuple[DynamicNet, nn.Module, torch.Tensor]:
    model, example = ZOO[name]()
    staged = split(model, example)
    net = attach(staged, default_heads(staged.num_classes), seed=seed)
    x = torch.randn(12, *example.shape[1:], generator=torch.Generator().manual_seed(seed))
    return net, model, x


def some_policy(net: DynamicNet, x: torch.Tensor, quantile: float = 0.5) -> Policy:
    """About half of the samples leave at each exit."""
    confidence = net.all_exits(x).softmax(-1).amax(-1)
    thresholds = confidence.quantile(quantile, dim=0).tolist()
    return Policy(threshold_e=(*thresholds[:-1], 0.0), temperature_e=(1.0,) * net.num_exits)


def table_of(net: DynamicNet, x: torch.Tensor):
    shape = tuple(x.shape[1:])
    channels = shape[0]
    spec = InputSpec(shape=shape, mean=(0.0,) * channels, std=(1.0,) * channels)
    return collect(net, Samples(pixels=x, spec=spec))


@pytest.mark.parametrize("name", NAMES)
class TestZoo:
    def test_forward_is_the_static_net(self, name: str) -> None:
        net, model, x = dynamic(name)
        torch.testing.assert_close(net(x), model(x), rtol=0, atol=0)

    def test_never_and_always(self, name: str) -> None:
        net, model, x = dynamic(name)
        never = net.run(x, Policy.never(net.num_exits))
        torch.testing.assert_close(never.logits, model(x), rtol=1e-5, atol=1e-5)
        assert never.exit.tolist() == [net.num_exits - 1] * len(x)
        assert never.macs.tolist() == [net.trunk_macs_e[-1]] * len(x)
        always = net.run(x, Policy.always(net.num_exits, 0))
        torch.testing.assert_close(always.logits, net.all_exits(x)[:, 0], rtol=1e-5, atol=1e-5)
        assert always.macs.tolist() == [net.trunk_macs_e[0] + net.head_macs_e[0]] * len(x)

    def test_a_batch_is_its_samples_in_any_order(self, name: str) -> None:
        net, _, x = dynamic(name)
        policy = some_policy(net, x)
        whole = net.run(x, policy)
        clear = clear_rows(net, x, policy)
        single = [net.run(sample[None], policy) for sample in x]
        turned = net.run(x.flip(0), policy)
        for i in clear.nonzero()[:, 0].tolist():
            assert int(single[i].exit) == int(whole.exit[i]) == int(turned.exit[-1 - i])
            assert int(single[i].macs) == int(whole.macs[i])
            torch.testing.assert_close(single[i].logits[0], whole.logits[i], rtol=1e-4, atol=1e-5)

    def test_predicted_macs_are_observed_macs(self, name: str) -> None:
        """The flagship: what the table predicts, what `run` counts, what torch counts while a sample runs alone."""
        net, _, x = dynamic(name)
        policy = some_policy(net, x)
        clear = clear_rows(net, x, policy)
        predicted = simulate(table_of(net, x), policy)
        observed = net.run(x, policy)
        assert predicted.macs_n[clear].tolist() == observed.macs[clear].tolist()
        for sample, macs in zip(x[:4], observed.macs[:4].tolist(), strict=True):
            with counting() as counted:
                net.run(sample[None], policy)
            assert counted.total() == macs

    @pytest.mark.parametrize("compact", ["auto", "always", "never"])
    def test_compaction_changes_no_answer(self, name: str, compact: str) -> None:
        net, _, x = dynamic(name)
        policy = some_policy(net, x)
        clear = clear_rows(net, x, policy)
        whole, other = net.run(x, policy), net.run(x, policy, compact=compact)
        assert whole.exit[clear].tolist() == other.exit[clear].tolist()
        assert whole.macs[clear].tolist() == other.macs[clear].tolist()
        torch.testing.assert_close(whole.logits[clear], other.logits[clear], rtol=1e-4, atol=1e-5)


def clear_rows(net: DynamicNet, x: torch.Tensor, policy: Policy) -> torch.Tensor:
    """Samples that no exit is undecided about: kernels may differ in the last bit with the number of samples."""
    confidence = net.all_exits(x).softmax(-1).amax(-1)[:, :-1]
    thresholds = torch.tensor(policy.threshold_e[:-1])
    return ((confidence - thresholds).abs() > 1e-5).all(1)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=3, max_size=3),
    st.lists(st.floats(0.2, 5), min_size=3, max_size=3),
    st.sampled_from(["max_probability", "margin", "entropy", "patience"]),
)
def test_table_and_run_agree_under_random_policies(thresholds, temperatures, measure_name) -> None:
    model, example = ZOO["residual"]()
    staged = split(model, example, after=[0.25, 0.5, 0.75])
    net = attach(staged, default_heads(staged.num_classes))
    x = torch.randn(9, *example.shape[1:], generator=torch.Generator().manual_seed(3))
    policy = Policy(
        confidence=measure_name,
        threshold_e=(*thresholds[: net.num_exits - 1], 0.0),
        temperature_e=(*temperatures[: net.num_exits - 1], 1.0),
    )
    predicted, observed = simulate(table_of(net, x), policy), net.run(x, policy)
    assert (predicted.exit_n == observed.exit).float().mean() >= 8 / 9  # one sample may sit on a threshold
    same = predicted.exit_n == observed.exit
    assert predicted.macs_n[same].tolist() == observed.macs[same].tolist()


def test_a_batch_of_one_and_none() -> None:
    net, _, x = dynamic("residual")
    policy = Policy.always(net.num_exits, 0)
    assert net.run(x[:1], policy).logits.shape == (1, net.num_classes)
    empty = net.run(x[:0], policy)
    assert empty.logits.shape == (0, net.num_classes)
    assert len(empty.exit) == len(empty.macs) == 0


def test_samples_of_nan_go_to_the_last_exit_and_disturb_no_other() -> None:
    net, _, x = dynamic("residual")
    policy = some_policy(net, x)
    clean = net.run(x, policy)
    dirty = x.clone()
    dirty[3] = torch.nan
    prediction = net.run(dirty, replace(policy, threshold_e=(0.0, *policy.threshold_e[1:])))
    assert int(prediction.exit[3]) == net.num_exits - 1
    kept = net.run(dirty, policy)
    others = [i for i in range(len(x)) if i != 3]
    assert kept.exit[others].tolist() == clean.exit[others].tolist()


def test_a_switched_off_exit_is_not_even_run() -> None:
    net, _, x = dynamic("residual")
    policy = Policy(threshold_e=(None, *([0.0] * (net.num_exits - 1))), temperature_e=(1.0,) * net.num_exits)
    ran = []
    net.exits[0].register_forward_hook(lambda *_: ran.append(0))
    net.run(x, policy)
    assert ran == []


def test_a_deadline_in_the_past_gives_the_first_exit_and_a_long_one_the_last() -> None:
    net, _, x = dynamic("residual")
    never = Policy.never(net.num_exits)
    late = net.run(x, never, deadline_ms=0)
    assert late.exit.tolist() == [0] * len(x)
    torch.testing.assert_close(late.logits, net.all_exits(x)[:, 0], rtol=1e-5, atol=1e-5)
    relaxed = net.run(x, never, deadline_ms=60_000)
    assert relaxed.exit.tolist() == [net.num_exits - 1] * len(x)
    assert relaxed.macs.tolist() == [net.trunk_macs_e[-1] + sum(net.head_macs_e)] * len(x)


def test_run_reads_only() -> None:
    net, _, x = dynamic("in_place_pre_activation")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    flags, kept, rng = [m.training for m in net.modules()], x.clone(), torch.get_rng_state()
    net.run(x, some_policy(net, x))
    assert torch.equal(x, kept)
    assert torch.equal(rng, torch.get_rng_state())
    assert flags == [m.training for m in net.modules()]
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_measured_costs_decide_when_to_gather() -> None:
    net, _, x = dynamic("residual")
    net.cost = measure(net, rows=(1, 4), budget_ms=1)
    free = replace(net.cost, stage_ms=tuple((0.0, 0.0) for _ in net.cost.stage_ms))
    assert not free.compaction_pays(0, 1, carried=4, waiting=1)
    dear = replace(net.cost, stage_ms=tuple((1.0, 400.0) for _ in net.cost.stage_ms))
    assert dear.compaction_pays(0, 1, carried=4, waiting=1)
    policy = some_policy(net, x)
    numbers: list[int] = []
    for stage in net.staged.stages:
        stage.register_forward_hook(lambda module, given, out: numbers.append(len(given[0])))
    net.cost = free
    left = net.run(x, policy).exit
    assert set(numbers) == {len(x)}, "a gather that saves nothing was made"
    numbers.clear()
    net.cost = dear
    net.run(x, policy)
    ends = [net.exit_stages[e] for e in left.tolist()]
    assert numbers == [sum(end >= s for end in ends) for s in range(len(numbers))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    net, _, x = dynamic("residual")
    net, x = net.to(dtype), x.to(dtype)
    prediction = net.run(x, Policy.never(net.num_exits))
    assert prediction.logits.dtype == dtype
    torch.testing.assert_close(prediction.logits, net(x), rtol=1e-2, atol=1e-2)


def test_a_temperature_rounds_nothing_in_half_precision() -> None:
    """The table divides logits in float32; dividing them in their own type moves samples to other exits."""
    net, _, _ = dynamic("residual")
    x = torch.randn(200, *net.staged.input_shape, generator=torch.Generator().manual_seed(4)).bfloat16()
    net = net.bfloat16()
    table = table_of(net, x)
    temperature_e = (1.3,) * net.num_exits
    sure_e = (table.logits_nek / 1.3).softmax(-1).amax(-1).median(0).values.tolist()
    policy = Policy(threshold_e=(*sure_e[:-1], 0.0), temperature_e=temperature_e)
    assert net.run(x, policy, compact="never").exit.tolist() == simulate(table, policy).exit_n.tolist()


def test_a_net_in_training_is_run_in_evaluation_and_stays_as_it_is() -> None:
    net, _, x = dynamic("residual")
    policy = some_policy(net, x)
    wanted = net.run(x, policy)
    plan = plan_batch(table_of(net, x), policy, budget=100.0)
    planned = run_batch(net, x, plan)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.train()
    torch.testing.assert_close(net.run(x, policy).logits, wanted.logits, rtol=0, atol=0)
    torch.testing.assert_close(run_batch(net, x, plan).logits, planned.logits, rtol=0, atol=0)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_channels_last() -> None:
    net, model, x = dynamic("residual")
    turned = net.to(memory_format=torch.channels_last)
    prediction = turned.run(x.contiguous(memory_format=torch.channels_last), Policy.never(net.num_exits))
    torch.testing.assert_close(prediction.logits, model(x), rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    net, _, x = dynamic("residual")
    with pytest.raises(PolicyError, match=r"policy is for 2 exits"):
        net.run(x, Policy.never(2) if net.num_exits != 2 else Policy.never(3))
    with pytest.raises(SourceError, match=r"the model expects"):
        net.run(x[..., :-1], Policy.never(net.num_exits))
    with pytest.raises(PolicyError, match=r"'auto', 'always' or 'never'"):
        net.run(x, Policy.never(net.num_exits), compact="sometimes")
