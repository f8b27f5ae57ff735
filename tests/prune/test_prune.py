"""Pruning: what is planned is what is left, what is left keeps every promise, and what cannot be cut is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gated_nets import gated_net
from methods import SPEC
from zoo import NETS

import dynext as dx
from dynext.errors import PlanError
from dynext.io.run_onnx import OnnxNet
from dynext.net.cascade import cascade
from dynext.prune.channels import Channels
from dynext.prune.cutting import zero
from dynext.testing import check_net


def dynamic(name: str = "residual", **options: object) -> tuple[dx.DynamicNet, torch.Tensor]:
    model, example = NETS[name]()
    net = dx.attach(dx.split(model, example, **options), dx.default_heads(10, hidden=8))
    return net, torch.randn(12, *example.shape[1:], generator=torch.Generator().manual_seed(0))


def padded(width: int = 4) -> tuple[dx.DynamicNet, dx.models.ResNet]:
    """Shortcuts that pad channels: those of the residual stream stand in other places behind them."""
    with dx.seeded(0):
        model = dx.models.ResNet(8, width=width, channels=3).eval()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_mean, -0.3, 0.3)
    staged = dx.split(model, torch.zeros(1, 3, 8, 8), after=["layer1", "layer2"])
    return dx.attach(staged, dx.default_heads(10, hidden=8)), model


@pytest.mark.parametrize("name", ["plain", "residual", "unet_like", "dense_concat", "vit_like", "shared_weights"])
def test_what_is_planned_is_what_is_left(name: str) -> None:
    net, x = dynamic(name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    random = torch.get_rng_state()

    plan = dx.prune.rank(net, budget=0.8)
    small = dx.prune.apply_plan(net, plan)

    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert plan.macs <= 0.8 * net.staged.macs
    assert plan.macs_e == tuple(a + b for a, b in zip(small.trunk_macs_e, small.head_macs_e, strict=True))
    assert plan.live_shapes == tuple(stage.live_shapes for stage in small.staged.stages)
    assert all(p.requires_grad for p in small.parameters())
    check_net(small, x)
    assert dx.prune.PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize("name", ["plain", "residual", "dense_concat"])
def test_removing_is_setting_to_zero(name: str) -> None:
    net, x = dynamic(name)
    plan = dx.prune.rank(net, budget=0.7)
    small = dx.prune.apply_plan(net, plan)
    channels = Channels(net)
    with torch.no_grad():
        for cut in plan.cuts:
            zero(channels.group(cut.layer, cut.channels), channels)
        torch.testing.assert_close(small.all_exits(x), net.all_exits(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["residual", "vit_like", "two_branches"])
def test_pruning_nothing_changes_nothing(name: str) -> None:
    net, x = dynamic(name)
    for plan in (dx.prune.PruningPlan(), dx.prune.rank(net, budget=1.0)):
        assert not plan
        assert str(plan) == "nothing is removed"
        same = dx.prune.apply_plan(net, plan)
        assert torch.equal(same.all_exits(x), net.all_exits(x))
        assert (same.trunk_macs_e, same.head_macs_e) == (net.trunk_macs_e, net.head_macs_e)
        assert same.staged.shrunk is None


def depthwise() -> torch.nn.Sequential:
    with dx.seeded(0):
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
            torch.nn.Conv2d(8, 8, 3, padding=1, groups=8), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
            torch.nn.Conv2d(8, 12, 1), torch.nn.ReLU(), torch.nn.Conv2d(12, 12, 1), torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(12, 10),
        ).eval()  # fmt: skip


def test_depthwise_convolutions_lose_groups_and_stay_float(tmp_path: Path) -> None:
    net = dx.attach(dx.split(depthwise(), torch.zeros(1, 3, 8, 8), after=["7"]), dx.heads.pooled_heads(10))
    x = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    small = dx.prune.apply_plan(net, dx.prune.rank(net, budget=0.5))
    (conv,) = (m for m in small.modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1)
    assert conv.groups == conv.in_channels < 8
    coarse = dx.prune.quantize(small, dx.data.Samples(pixels=SPEC.pixels(x), spec=SPEC), least_macs=0)
    assert any(isinstance(m, torch.nn.Conv2d) and m.groups == conv.groups for m in coarse.modules())
    for kept in (small, coarse):
        dx.save(kept, tmp_path / "net", policy=dx.Policy.never(2), spec=SPEC)
        again = dx.load(tmp_path / "net", model=depthwise()).net
        with torch.no_grad():
            assert torch.equal(again.all_exits(x), kept.all_exits(x))


def test_what_wants_a_gradient_is_what_wanted_one() -> None:
    net, _ = dynamic("plain")
    net.staged.requires_grad_(False)
    small = dx.prune.apply_plan(net, dx.prune.rank(net, budget=0.7))
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in net.parameters()]


def test_padded_shortcuts_keep_their_channels() -> None:
    net, _ = padded()
    plan = dx.prune.rank(net, budget=0.6)
    assert plan.cuts
    assert all(cut.layer.endswith("conv1") and cut.coupled == (cut.layer, cut.layer[:-5] + "bn1") for cut in plan.cuts)
    check_net(dx.prune.apply_plan(net, plan), torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    bad = dx.prune.Cut(layer="staged.stages.0.body.conv1", channels=(1, 2), of=4)
    with pytest.raises(PlanError, match=r"2 of 4 channels of staged.stages.0.body.conv1 cannot go: .*after 'layer1'"):
        dx.prune.apply_plan(net, dx.prune.PruningPlan(cuts=(bad,)))


def test_what_was_ranked_can_be_applied() -> None:
    """With two channels, padded to four, the first may go and the second may not."""
    net, _ = padded(width=2)
    for budget in (0.8, 0.5):
        plan = dx.prune.rank(net, budget=budget)
        assert dx.prune.apply_plan(net, plan).staged.macs == plan.macs <= budget * net.staged.macs


def test_plans_for_another_net_are_refused() -> None:
    net, _ = dynamic("plain")
    plan = dx.prune.rank(net, budget=0.8)
    cut = plan.cuts[0]
    for changed, told in (
        (replace(cut, layer="staged.stages.0.body.nothing"), "is no layer of this net"),
        (replace(cut, of=9), "has 8 channels, the plan says 9"),
        (replace(cut, coupled=("one", "two")), "the plan says one, two"),
    ):
        with pytest.raises(PlanError, match=told):
            dx.prune.apply_plan(net, replace(plan, cuts=(changed,)))
    with pytest.raises(PlanError, match="made for another net"):
        dx.prune.apply_plan(net, replace(plan, macs_e=(1, 2)))
    with pytest.raises(PlanError, match="both cut the output of"):
        dx.prune.apply_plan(net, dx.prune.PruningPlan(cuts=(cut, replace(cut, channels=(7,)))))
    for channels in ((), (1, 1), (8,), tuple(range(8))):
        with pytest.raises(PlanError, match="channels"):
            dx.prune.Cut(layer="here", channels=channels, of=8)
    with pytest.raises(PlanError, match="this is no plan"):
        dx.prune.PruningPlan.from_dict({"cuts": []})


def test_what_cannot_be_pruned_is_refused() -> None:
    net, _ = dynamic("plain")
    with pytest.raises(PlanError, match="out of reach"):
        dx.prune.rank(net, budget=0.001)
    with pytest.raises(PlanError, match="budget 2"):
        dx.prune.rank(net, budget=2)
    with pytest.raises(PlanError, match="give source="):
        dx.prune.rank(net, budget=0.5, by="taylor")
    with pytest.raises(PlanError, match="has gates"):
        dx.prune.rank(gated_net(), budget=0.5)
    with pytest.raises(PlanError, match="is a cascade"):
        dx.prune.apply_plan(cascade(net, "boost"), dx.prune.PruningPlan())
    with pytest.raises(PlanError, match="answers by cosines; prune the net without"):
        dx.prune.rank(dx.attach(net.staged, dx.heads.cosine_heads(dx.default_heads(net.num_classes))), budget=0.5)
    masked = dx.heads.masked_heads(dx.heads.cosine_heads(dx.default_heads(net.num_classes)))
    with pytest.raises(PlanError, match="answers by cosines"):
        dx.prune.rank(dx.attach(net.staged, masked), budget=0.5)
    with pytest.raises(PlanError, match="no exit 'nowhere' to leave out; exits: "):
        dx.prune.apply_plan(net, dx.prune.PruningPlan(exits=("nowhere",)))
    with pytest.raises(PlanError, match="cannot be left out; stages that may be: none"):
        dx.prune.apply_plan(net, dx.prune.PruningPlan(blocks=("features.1",)))


def test_blocks_and_exits_go_too(tmp_path: Path) -> None:
    net, x = dynamic("residual", granularity="block")
    names = [stage.name for stage in net.staged.stages]
    policy = dx.Policy(threshold_e=(None, *[0.5] * (net.num_exits - 2), 0.0), temperature_e=(1.0,) * net.num_exits)
    samples = dx.data.Samples(pixels=torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)), spec=SPEC)
    last = net.staged.stages[net.staged.skippable[-1]].name
    plan = dx.prune.rank(net, budget=0.6, source=samples, policy=policy)
    assert plan.exits == (names[0],)
    plan = replace(plan, exits=(), cuts=(), blocks=(last,), macs_e=(), live_shapes=())
    with pytest.raises(PlanError, match="two exits stand after one stage"):
        dx.prune.apply_plan(net, plan)
    small = dx.prune.apply_plan(net, replace(plan, exits=(names[names.index(last) - 1],)))
    assert small.num_exits == net.num_exits - 1
    assert [stage.name for stage in small.staged.stages] == [name for name in names if name != last]
    check_net(small, x)
    ranked = dx.prune.rank(net, budget=1.0, source=samples, blocks=1, policy=dx.Policy.never(net.num_exits))
    assert len(ranked.blocks) == 1
    assert ranked.exits == tuple(exit.name for exit in net.exits)
    thin = dx.prune.apply_plan(small, dx.prune.rank(small, budget=0.7))
    assert thin.staged.shrunk["dropped"] == [last]
    dx.save(thin, tmp_path / "net", policy=dx.Policy.never(thin.num_exits), spec=SPEC)
    again = dx.load(tmp_path / "net", model=NETS["residual"]()[0]).net
    assert torch.equal(again.all_exits(x), thin.all_exits(x))


@pytest.mark.parametrize("name", ["residual", "unet_like"])
def test_a_pruned_net_in_8_bits_is_saved_loaded_and_run(name: str, tmp_path: Path) -> None:
    net, x = dynamic(name)
    small = dx.prune.apply_plan(net, dx.prune.rank(net, budget=0.8))
    smaller = dx.prune.apply_plan(small, dx.prune.rank(small, budget=0.97))  # twice, the second on what the first left
    samples = dx.data.Samples(pixels=SPEC.pixels(x), spec=SPEC)
    coarse = dx.prune.quantize(smaller, samples, least_macs=0)
    policy = dx.Policy.always(net.num_exits)
    for kept in (smaller, coarse):
        dx.save(kept, tmp_path / "net", policy=policy, spec=SPEC)
        again = dx.load(tmp_path / "net", model=NETS[name]()[0]).net
        with torch.no_grad():
            assert torch.equal(again.all_exits(x), kept.all_exits(x))
        assert (again.trunk_macs_e, again.head_macs_e) == (kept.trunk_macs_e, kept.head_macs_e)
        assert again.int8 == kept.int8
        check_net(again, x)


def test_a_pruned_net_in_8_bits_is_exported_in_8_bits(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model, example = NETS["residual"]()
    net = dx.attach(dx.split(model, example, after=[0.4]), dx.heads.conv_heads(10, hidden=8, separable=0))
    x = torch.randn(12, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    small = dx.prune.apply_plan(net, dx.prune.rank(net, budget=0.8))
    coarse = dx.prune.quantize(small, dx.data.Samples(pixels=SPEC.pixels(x), spec=SPEC), least_macs=0)
    with torch.no_grad():
        logits_bek, float_bek = coarse.all_exits(x), small.all_exits(x)
    surest = logits_bek[:, 0].softmax(-1).amax(-1).sort().values
    policy = dx.Policy(threshold_e=(float(surest[5:7].mean()), 0.0), temperature_e=(1.0, 1.0))
    folder = dx.export(coarse, tmp_path / "out", policy=policy, spec=SPEC)

    answers, wanted = OnnxNet(folder).run(x.numpy()), coarse.run(x, policy)
    assert answers.exit.tolist() == wanted.exit.tolist()
    assert set(answers.exit.tolist()) == {0, 1}
    near = 0.02 * float(logits_bek.abs().max())  # other kernels may round a number up that stands halfway
    torch.testing.assert_close(torch.from_numpy(answers.logits), wanted.logits, rtol=0, atol=near)
    assert float((logits_bek - float_bek).abs().max()) > near
    for stem, prefix in (("stage_00", "staged.stages.0."), ("stage_01", "staged.stages.1."), ("exit_00", "exits.0.")):
        kept = onnx.load(folder / f"{stem}.onnx").graph.initializer
        weights = [tensor for tensor in kept if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1]
        assert len(weights) == sum(layer.startswith(prefix) for layer in coarse.int8["layers"]) > 0
    program = torch.export.load(folder / "stage_01.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(program(*coarse.staged.stages[0](x))[0], coarse.staged(x), rtol=0, atol=near)
