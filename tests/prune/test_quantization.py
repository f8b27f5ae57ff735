"""8 bits: rounding is the formula, kernels do what it says, answers stay within a bound of the float net."""

import copy
import importlib

import numpy as np
import pytest
import torch
from methods import METHODS, SPEC, config, setting
from reference import int8 as slow
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import NETS

import dynext as dx
from dynext.errors import FitError, ModelError
from dynext.net.int8 import Int8Layer, chains, to_int8
from dynext.prune.quantization import rounded, value_range

int8_module = importlib.import_module("dynext.net.int8")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_the_formula(relu: bool, groups: int) -> None:
    conv = nn.Conv2d(4, 6, 3, 2, 1, groups=groups).requires_grad_(False)
    conv.weight.copy_(drawn(*conv.weight.shape))
    x = 3 * drawn(2, 4, 7, 5, seed=1)
    scale, zero = value_range(x.flatten())
    wanted = slow.convolution(x.numpy(), conv.weight.numpy(), conv.bias.numpy(), scale, zero, 2, 1, groups, relu)
    layer = Int8Layer(conv, relu=relu, scale=scale, zero=zero)
    torch.testing.assert_close(layer(x), torch.from_numpy(wanted).float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer._written_out(x), layer(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_a_1x1_convolution_is_the_formula_and_runs_as_a_linear_layer(form: torch.memory_format, batch: int) -> None:
    conv = nn.Conv2d(6, 5, 1, (2, 1)).requires_grad_(False)
    x = 3 * drawn(batch, 6, 5, 4, seed=1).contiguous(memory_format=form)
    scale, zero = value_range(x.flatten())
    wanted = slow.convolution(x[:, :, ::2].numpy(), conv.weight.numpy(), conv.bias.numpy(), scale, zero, 1, 0, 1, True)
    layer = Int8Layer(conv, relu=True, scale=scale, zero=zero)
    with Called() as called:
        torch.testing.assert_close(layer(x), torch.from_numpy(wanted).float(), rtol=1e-4, atol=1e-4)
    assert "onednn.qlinear_pointwise.default" in called.names  # the other kernel packs some weights in every call
    padded = Int8Layer(nn.Conv2d(6, 5, 1, padding=1).requires_grad_(False), relu=False, scale=scale, zero=zero)
    torch.testing.assert_close(padded(x), padded._written_out(x), rtol=1e-4, atol=1e-4)


class Called(TorchDispatchMode):
    """Names of the operators that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_rounding_some_samples_at_a_time_changes_nothing(form: torch.memory_format, monkeypatch) -> None:
    layer = Int8Layer(nn.Conv2d(4, 6, 3, 1, 1), relu=False, scale=0.02, zero=100)
    x = drawn(7, 4, 5, 5).contiguous(memory_format=form).requires_grad_()
    wanted = layer(x)
    for at_once in (1, 250):
        monkeypatch.setattr(int8_module, "AT_ONCE", at_once)
        assert torch.equal(layer(x), wanted)


def test_large_sums_do_not_saturate() -> None:
    conv = nn.Conv2d(64, 8, 3, bias=False).requires_grad_(False)
    conv.weight.fill_(1.0)
    layer = Int8Layer(conv, relu=False, scale=1.0, zero=0)
    x = torch.full((1, 64, 3, 3), 255.0)
    torch.testing.assert_close(layer(x), conv(x))


def test_a_linear_layer_is_the_formula() -> None:
    linear = nn.Linear(9, 5, bias=False).requires_grad_(False)
    x = drawn(3, 4, 9)
    scale, zero = value_range(x.flatten())
    wanted = slow.linear(x.numpy(), linear.weight.numpy(), np.zeros(5), scale, zero)
    layer = Int8Layer(linear, relu=False, scale=scale, zero=zero)
    torch.testing.assert_close(layer(x), torch.from_numpy(wanted).float(), rtol=1e-4, atol=1e-4)


def test_ranges_have_the_least_squared_error() -> None:
    value = torch.cat([drawn(4000), torch.tensor([40.0])])
    scale, zero = value_range(value)
    best = float((rounded(value, scale, zero) - value).square().sum())
    assert best == pytest.approx(slow.squared_error(value.numpy(), scale, zero), rel=1e-3)
    whole = slow.squared_error(
        value.numpy(), (40 - float(value.min())) / 255, round(-float(value.min()) * 255 / (40 - float(value.min())))
    )
    assert best <= whole * (1 + 1e-6)
    assert value_range(torch.zeros(5)) == (1.0, 0)
    _, zero = value_range(torch.tensor([2.0, 3.0]))  # zero is always within: padding is zero
    assert zero == 0
    assert value_range(torch.tensor([-3.0, -2.0]))[1] == 255


@pytest.mark.parametrize("name", NETS)
def test_every_net_stays_near_its_float_self(name: str) -> None:
    model, example = NETS[name]()
    net = dx.attach(dx.split(model, example), dx.default_heads(10, hidden=8))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    random = torch.get_rng_state()
    samples = dx.data.Samples(pixels=torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)), spec=SPEC)
    coarse = dx.prune.quantize(net, samples, least_macs=0)
    x = samples.take(torch.arange(16)).x
    with torch.no_grad():
        float_bek, coarse_bek = net.all_exits(x), coarse.all_exits(x)
        assert torch.equal(copy.deepcopy(coarse).all_exits(x), coarse_bek)
    off = (coarse_bek - float_bek).abs().max() / float_bek.abs().max()
    assert float(off) < 0.06  # untrained: no answer is far from another
    assert not torch.equal(coarse_bek, float_bek)
    assert (coarse.trunk_macs_e, coarse.head_macs_e) == (net.trunk_macs_e, net.head_macs_e)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    norms = [m for stage in coarse.staged.stages for m in stage.modules() if isinstance(m, nn.BatchNorm2d)]
    if name in ("plain", "residual", "unet_like"):
        assert not norms
    assert sum(s.param_bytes for s in coarse.staged.stages) < sum(s.param_bytes for s in net.staged.stages)


def test_a_trained_net_answers_alike() -> None:
    """The stated bound: a hundredth of the largest logit or so, and nearly every answer."""
    net, samples = setting(METHODS["joint"])
    net = dx.train.joint(net, samples, config(40))
    coarse = dx.prune.quantize(net, samples, least_macs=0)
    x = samples.take(torch.arange(64)).x
    with torch.no_grad():
        float_bek, coarse_bek = net.all_exits(x), coarse.all_exits(x)
    assert float((coarse_bek - float_bek).abs().max() / float_bek.abs().max()) < 0.04
    assert float((coarse_bek.argmax(-1) == float_bek.argmax(-1)).float().mean()) > 0.97
    table = dx.collect(coarse, samples)
    policy = dx.choose(table, budget=0.9, rule=dx.policies.SafeRule(min_support=0))
    assert dx.simulate(table, policy).macs_n[:16].tolist() == coarse.run(x[:16], policy).macs.tolist()


def test_a_net_in_training_is_left_alone() -> None:
    net, samples = setting(METHODS["joint"], n=8)
    before, flags = copy.deepcopy(net.train().state_dict()), [m.training for m in net.modules()]
    dx.prune.quantize(net, samples, least_macs=0)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert [m.training for m in net.modules()] == flags


def test_small_and_shared_layers_stay_float() -> None:
    model, example = NETS["shared_weights"]()
    net = dx.attach(dx.split(model, example), dx.default_heads(10, hidden=8))
    assert not any("again" in name for name, _ in chains(net))
    samples = dx.data.Samples(pixels=torch.rand(4, 3, 8, 8), spec=SPEC)
    coarse = dx.prune.quantize(net, samples, least_macs=10_000)
    assert list(coarse.int8["layers"]) == ["staged.stages.0.body.stem.0"]


def test_what_cannot_be_quantized_is_refused() -> None:
    net, samples = setting(METHODS["joint"], n=8)
    coarse = dx.prune.quantize(net, samples, least_macs=0)
    with pytest.raises(FitError, match="in 8 bits already"):
        dx.prune.quantize(coarse, samples)
    with pytest.raises(FitError, match="no layer spends 1,000,000,000 MACs"):
        dx.prune.quantize(net, samples, least_macs=10**9)
    with pytest.raises(FitError, match="batches=0"):
        dx.prune.quantize(net, samples, least_macs=0, batches=0)
    with pytest.raises(FitError, match="8 bits has no gradients"):
        dx.prune.gradient_maps(coarse, samples.take(torch.arange(2)).x)
    with pytest.raises(ModelError, match="'nowhere' is no layer"):
        to_int8(net, {"layers": {"nowhere": [1.0, 0]}})
    with pytest.raises(dx.errors.PlanError, match="is in 8 bits"):
        dx.prune.rank(coarse, budget=0.5)
    with pytest.raises(dx.errors.SourceError, match="no samples"):
        dx.prune.quantize(net, samples.subset(torch.arange(0)))
