"""Splitting, loading and running from many threads: nobody's modules, generators or switches are touched."""

import copy
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx import _symbolic_trace as symbolic
from zoo import NETS

from dynext.graph.macs import counting
from dynext.graph.split import split
from dynext.seeding import seeded, seeded_if_drawn

CALL, GETATTR = nn.Module.__call__, nn.Module.__getattr__


class Foreign(nn.Module):
    """Somebody else's module."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4))
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) * self.scale


@pytest.fixture
def eager_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(jobs: list[Callable[[], None]], seconds: float) -> list[int]:
    """How often each job was done; the first error of any is raised."""
    counts, errors, end = [0] * len(jobs), [], time.monotonic() + seconds

    def repeat(index: int) -> None:
        try:
            while not errors and (time.monotonic() < end or not counts[index]):
                jobs[index]()
                counts[index] += 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(index,)) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return counts


def plain_job() -> Callable[[], None]:
    foreign, x = Foreign(), torch.randn(2, 4)
    wanted = foreign(x).detach()

    def job() -> None:
        assert type(foreign.scale) is nn.Parameter
        assert torch.equal(foreign(x).detach(), wanted)

    return job


def split_job(name: str, side: int = 8) -> Callable[[], None]:
    model, _ = NETS[name]()
    x = torch.randn(1, 3, side, side)
    wanted = model(x).detach()

    def job() -> None:
        assert torch.equal(split(model, x)(x).detach(), wanted)

    return job


def test_many_threads_split_copy_load_and_run_at_once(eager_switching) -> None:
    model, x = NETS["in_place_pre_activation"]()
    staged = split(model, x)
    wanted, stored = staged(x).detach(), pickle.dumps(staged)

    def load() -> None:
        assert torch.equal(pickle.loads(stored)(x).detach(), wanted)

    def copied() -> None:
        assert torch.equal(copy.deepcopy(staged)(x).detach(), wanted)

    nets = [split_job("residual"), split_job("residual", side=112), split_job("vit_like"), split_job("kept_whole")]
    assert min(at_once([plain_job(), *nets, load, copied], seconds=3)) >= 1
    assert nn.Module.__call__ is CALL
    assert nn.Module.__getattr__ is GETATTR
    assert not symbolic._is_fx_tracing_flag
    assert torch.backends.mha.get_fastpath_enabled()


class Waiting(nn.Module):
    """Stops in the middle of being traced."""

    reached, go_on = threading.Event(), threading.Event()  # of the class: the copy that is traced has the same

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if isinstance(x, fx.Proxy):
            self.reached.set()
            assert self.go_on.wait(60)
        return self.head(x.relu().mean((2, 3)))


def test_in_the_middle_of_a_trace_other_threads_see_plain_modules() -> None:
    waiting, foreign, x = Waiting(), Foreign(), torch.randn(2, 4)
    compiled = torch.compile(Foreign(), backend="eager")
    before = foreign(x), compiled(x)
    done = []
    tracing = threading.Thread(target=lambda: done.append(split(waiting, torch.zeros(1, 3, 8, 8))))
    tracing.start()
    try:
        assert waiting.reached.wait(60)
        assert nn.Module.__call__ is CALL
        assert type(foreign.scale) is nn.Parameter
        assert torch.equal(foreign(x), before[0])
        assert torch.equal(compiled(x), before[1])
        assert not symbolic._is_fx_tracing_flag
        torch.manual_seed(7)
        drawn = torch.randn(3)
    finally:
        waiting.go_on.set()
        tracing.join()
    assert len(done[0].stages) == 2
    torch.manual_seed(7)
    assert torch.equal(torch.randn(3), drawn)


def test_a_model_without_randomness_leaves_the_generator_to_others(monkeypatch) -> None:
    nets = [NETS[name]() for name in ("residual", "vit_like", "kept_whole")]
    monkeypatch.setattr(torch.random, "fork_rng", None)
    monkeypatch.setattr(torch, "manual_seed", None)
    for model, x in nets:
        assert split(model, x).cuts


def test_overlapping_blocks_of_random_work_give_the_state_back() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    drawn = set()

    def job() -> None:
        with seeded(5):
            time.sleep(0.001)
            drawn.add(torch.rand(()).item())

    at_once([job] * 4, seconds=0.3)
    assert len(drawn) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_seeded_if_drawn_is_seeded_once_something_is_drawn() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    with seeded_if_drawn(5):
        torch.ones(2) + 1
        assert torch.equal(torch.get_rng_state(), state)
        first, second = nn.functional.dropout(torch.ones(64)), torch.rand(2)
    assert torch.equal(torch.get_rng_state(), state)
    with seeded(5):
        assert torch.equal(nn.functional.dropout(torch.ones(64)), first)
        assert torch.equal(torch.rand(2), second)


def test_overlapping_counts_turn_the_switch_back() -> None:
    def job() -> None:
        with counting():
            time.sleep(0.001)
            assert not torch.backends.mha.get_fastpath_enabled()

    at_once([job] * 4, seconds=0.3)
    assert torch.backends.mha.get_fastpath_enabled()
