"""Tables that a model computes once and keeps: none of them may be one of tensors without content."""

import functools

import pytest
import torch
from torch import Tensor, nn

from dynext.graph.split import split


@functools.lru_cache(maxsize=4)
def distances(side: int) -> Tensor:
    """Shared by all models of a process."""
    at = torch.arange(side, dtype=torch.float32)
    return (at[:, None] - at[None]).abs()


class Shared(nn.Module):
    """No tracer follows it, because it goes through the samples one by one: it is run for its shapes."""

    def table(self, side: int) -> Tensor:
        return distances(side)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([row @ self.table(row.shape[-1]) for row in x])


class Own(Shared):
    """Kept on the module, as Hugging Face's BEiT does: copies of the model share it."""

    def table(self, side: int) -> Tensor:
        if "kept" not in self.__dict__:
            self.__dict__["kept"] = functools.lru_cache(maxsize=4)(distances.__wrapped__)
        return self.__dict__["kept"](side)


class Net(nn.Module):
    def __init__(self, kind: type[nn.Module], side: int) -> None:
        super().__init__()
        self.first, self.table, self.second, self.head = nn.Linear(8, 8), kind(), nn.Linear(8, 8), nn.Linear(side, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(self.first(x))
        if h.shape[-1] != 8:
            raise ValueError("features")
        h = self.second(h).relu()
        if h.dtype != self.head.weight.dtype:
            h = h.to(self.head.weight.dtype)
        return self.head(h.flatten(1))


@pytest.mark.parametrize("side", [64, 32_776])  # from that size on, shapes alone are probed
@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.parametrize("kind", [Shared, Own])
@torch.no_grad()
def test_split_leaves_no_table_without_content(kind, called_before, side):
    distances.cache_clear()
    model, x = Net(kind, side).eval(), torch.randn(3, side // 8, 8)
    wanted = model(x) if called_before else None
    staged = split(model, x)
    assert type(distances(8)) is Tensor
    wanted = model(x) if wanted is None else wanted
    torch.testing.assert_close(staged(x), wanted)
    torch.testing.assert_close(model(x), wanted)
