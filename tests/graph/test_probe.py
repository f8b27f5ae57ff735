"""What a probe sees, with and without real tensors."""

import pytest
import torch
from torch import Tensor, nn
from zoo import NETS

from dynext.graph.private import private_copy
from dynext.graph.probe import ProbeError, holds_tensor, probe, take_samples
from dynext.graph.trace import trace

LOOKS_INSIDE = {"kept_whole"}
"""What decides by a tensor's content fails on fake tensors, as it must."""


@pytest.mark.parametrize("name", sorted(set(NETS) - LOOKS_INSIDE))
def test_fake_and_real_probes_see_the_same(name):
    model, x = NETS[name]()
    with torch.no_grad():
        traced = trace(private_copy(model), x)
        real, _ = probe(traced, x, count=True)
        fake, _ = probe(traced, x, count=True, fake=True)
    assert sum(record.macs for record in real.values()) > 0
    for node, record in real.items():
        assert record == fake[node], node


class Peeks(nn.Module):
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 1e9 else x * 2

    class Keeps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.__dict__["kept"] = x
            return x

    class Caches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.__dict__.setdefault("by_device", {})[str(x.device)] = [x]
            return x

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.parametrize("inner", [Peeks.Inner, Peeks.Keeps, Peeks.Caches])
def test_modules_that_need_content_fail_on_fake_tensors_only(inner):
    traced = trace(Peeks(inner()))
    with pytest.raises(ProbeError):
        probe(traced, torch.ones(2, 3), fake=True)
    records, out = probe(trace(Peeks(inner())), torch.ones(2, 3))
    assert out.shape == (2, 3)
    assert len(records) == 3


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 12)


def test_a_written_down_batch_size_is_named():
    with pytest.raises(ProbeError, match=r"fails with 3 samples at node 'reshape'.*cannot lose samples"):
        probe(trace(Fixed()), torch.zeros(3, 12))


def test_samples_are_repeated_where_there_are_too_few():
    assert take_samples(torch.tensor([[1.0], [2.0]]), 3).flatten().tolist() == [1.0, 2.0, 1.0]


def test_holds_tensor_goes_inside():
    assert holds_tensor([(1, {"a": torch.zeros(1)})])
    assert not holds_tensor([(1, {"a": torch.Size([2])})])
