"""Attention heads: the mask is the paper's, its cost is counted, and such an exit goes wherever the others go."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import attention as slow
from zoo import NETS

from dynext.errors import SplitError
from dynext.graph.macs import count_macs
from dynext.graph.split import split
from dynext.io.artifact import load, save
from dynext.io.export import export
from dynext.io.run_onnx import OnnxNet
from dynext.modules.exit_layers import Attention
from dynext.modules.exits import attention_heads, build_exit
from dynext.net.attach import attach
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.policy import Policy
from dynext.testing import check_net
from dynext.types import InputSpec

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)


def dynamic(
    name: str = "residual", after: list[float] | None = None
) -> tuple[DynamicNet, torch.nn.Module, torch.Tensor]:
    model, example = NETS[name]()
    net = attach(split(model, example, after), attention_heads(10, hidden=8)).requires_grad_(False)
    return net, model, torch.randn(12, *example.shape[1:], generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(8, 6), (7, 5), (1, 1), (2, 3)])
def test_the_mask_is_the_papers(size: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(0)
    module = Attention(4, 3, size).double().eval()
    for norm in (module.mask[1], module.mask[4]):
        for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
            tensor.copy_(torch.randn(tensor.shape, generator=draw))
        norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=draw) + 0.5)
    x = torch.randn(2, 4, *size, generator=draw, dtype=torch.float64)
    weights = [module.mask[0].weight.detach().numpy(), module.mask[3].weight.detach().numpy()]
    norms = [
        tuple(t.detach().numpy() for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
        for norm in (module.mask[1], module.mask[4])
    ]
    wanted = np.stack([slow.attended(sample.numpy(), weights[0], norms[0], weights[1], norms[1]) for sample in x])
    torch.testing.assert_close(module(x).detach(), torch.from_numpy(wanted))


@pytest.mark.parametrize("tap", [(8, 28, 28), (32, 7, 7), (16, 1, 1), (64, 3, 5), (4, 100, 60), (14, 14, 24)])
def test_they_fit_any_map(tap: tuple[int, ...]) -> None:
    exit = build_exit(json.loads(json.dumps(attention_heads(5)(tap))), after=0, name="here").eval()
    x = torch.randn(3, *tap)
    assert exit(x).shape == (3, 5)
    torch.testing.assert_close(exit.head(exit.reduce(x)), exit(x))
    assert not list(exit.reduce.parameters())


def test_the_mask_is_paid_for() -> None:
    exit = build_exit(attention_heads(5, hidden=64, separable=0)((16, 8, 8)), after=0, name="here")
    mask = 2 * (4 * 4) * 9 * 16 * 8
    assert count_macs(exit, torch.randn(2, 16, 8, 8)) == mask + 9 * 16 * 64 * 16 + 64 * 9 * 5


@pytest.mark.parametrize("name", ["residual", "unet_like", "dense_concat"])
def test_a_net_with_them_keeps_every_promise(name: str) -> None:
    net, model, x = dynamic(name)
    check_net(net, x)
    torch.testing.assert_close(net(x), model(x), rtol=0, atol=0)


def test_they_come_back_from_a_folder(tmp_path: Path) -> None:
    net, model, x = dynamic()
    save(net, tmp_path / "net", policy=Policy.never(net.num_exits), spec=SPEC)
    loaded = load(tmp_path / "net", model=model).net
    torch.testing.assert_close(loaded.all_exits(x), net.all_exits(x), rtol=0, atol=0)
    assert loaded.head_macs_e == net.head_macs_e


def test_they_leave_the_house_as_torch_programs(tmp_path: Path) -> None:
    net, _, x = dynamic(after=[0.5])
    export(net, tmp_path, policy=Policy.never(net.num_exits), spec=SPEC, formats=["torch"])
    tap = net.taps(x)[0][0]
    program = torch.export.load(tmp_path / "exit_00.pt2").module()
    for some in (tap, tap[:1]):
        torch.testing.assert_close(program(some), net.exits[0](some))


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="the onnx extra is not installed",
)
def test_they_leave_the_house_as_onnx(tmp_path: Path) -> None:
    net, _, x = dynamic(after=[0.5])
    policy = Policy.always(net.num_exits)
    export(net, tmp_path / "net", policy=policy, spec=SPEC, formats=["onnx"])
    wanted, given = net.run(x, policy), OnnxNet(tmp_path / "net").run(x.numpy())
    torch.testing.assert_close(torch.from_numpy(given.logits), wanted.logits, rtol=1e-4, atol=1e-4)
    assert given.macs.tolist() == wanted.macs.tolist()


def test_what_is_no_map_is_refused() -> None:
    with pytest.raises(SplitError, match=r"attention head needs a tap of 3 dimensions a sample, this one has"):
        attention_heads(5)((17, 12))
