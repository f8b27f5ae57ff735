"""Stages outlive their process: pickled, saved by torch, copied, sent to a spawned process."""

import copy
import io
import multiprocessing
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from zoo import NETS, build, conv

import dynext as dx
from dynext.graph.deepest import with_deepest
from dynext.graph.split import split


def through_torch(net: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {"pickle": lambda net: pickle.loads(pickle.dumps(net)), "torch.save": through_torch, "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETS)
def test_a_net_comes_back_as_it_was(name: str, way: str) -> None:
    model, x = NETS[name]()
    staged = split(model, x, granularity="block")
    again = WAYS[way](staged)
    assert torch.equal(again(x), model(x))
    assert str(again) == str(staged)
    assert list(again.state_dict()) == list(staged.state_dict())
    for stage, twin in zip(staged.stages, again.stages, strict=True):
        assert [node.name for node in twin.body.graph.nodes] == [node.name for node in stage.body.graph.nodes]
        assert twin.body.code == stage.body.code
    assert not {p.data_ptr() for p in again.parameters()} & {p.data_ptr() for p in staged.parameters()}
    again.train()
    again(x).sum().backward()
    assert all(p.grad is None for p in staged.parameters())


@pytest.mark.parametrize("way", WAYS)
def test_a_dynamic_net_comes_back(way: str) -> None:
    model, x = NETS["in_place_pre_activation"]()
    staged = split(model, x)
    net = dx.attach(staged, dx.default_heads(staged.num_classes)).eval()
    again = WAYS[way](net)
    torch.testing.assert_close(again.all_exits(x), net.all_exits(x), rtol=0, atol=0)
    assert not any(module.training for module in again.modules())


@pytest.mark.parametrize("way", WAYS)
def test_what_is_shared_stays_shared(way: str) -> None:
    model, x = NETS["shared_weights"]()
    again = WAYS[way](split(model, x, ["again@0", "again@1", "again"]))
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in model.parameters())
    assert torch.equal(again(x), model(x))


class Dispatching(nn.Module):
    """Functions whose own name is another's, operators, methods, builtins, slices and keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv(3, 8), conv(8, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.first(x), 2, stride=1)
        x = nn.functional.gelu(x, approximate="tanh") + torch.cat([x[:, :4], x[:, 4:].flip(1)], dim=1)
        x[:, ::2] = x[:, ::2] * 2
        x = nn.functional.adaptive_max_pool2d(self.second(x), (2, 2))
        return self.head(torch.einsum("bchw->bc", x).clamp(max=3.0))


def test_functions_are_found_again_under_their_names() -> None:
    model, x = build(Dispatching)
    assert torch.equal(pickle.loads(pickle.dumps(split(model, x)))(x), model(x))


def test_a_last_stage_cut_once_more_comes_back() -> None:
    model, x = NETS["residual"]()
    deep = with_deepest(split(model, x))
    assert torch.equal(pickle.loads(pickle.dumps(deep))(x), model(x))


def test_nothing_is_traced_when_a_net_is_loaded(monkeypatch) -> None:
    model, x = NETS["residual"]()
    stored = pickle.dumps(split(model, x))
    monkeypatch.setattr(torch.fx.Tracer, "trace", None)
    assert torch.equal(pickle.loads(stored)(x), model(x))


class Locked(nn.Module):
    """Kept whole, and nothing that a copy can be made of."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lock, self.last = conv(8, 8), threading.Lock(), None

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            self.last = self.conv(x) if float(x.detach().sum()) > -1e9 else x
            return self.last


class Holding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.locked, self.last, self.head = conv(3, 8), Locked(), conv(8, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.locked(self.first(x))).mean((2, 3)))


def test_exits_go_on_a_net_with_a_lock_in_it_and_with_what_it_kept() -> None:
    model, x = build(Holding)
    staged = split(model, x)
    staged(x).sum()  # with gradients: what it keeps hangs on them
    net = copy.deepcopy(dx.attach(staged, dx.default_heads(staged.num_classes)))
    assert torch.equal(net(x), model(x))


def test_a_spawned_process_takes_a_net() -> None:
    model, x = NETS["in_place_pre_activation"]()
    staged = split(model, x).requires_grad_(False)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        torch.testing.assert_close(pool.submit(staged, x).result(timeout=300), model(x).detach())
