"""Lent modules of one's own: any module that makes a mask of an exit's feature and a later one."""

from __future__ import annotations

import pytest
import torch
from methods import METHODS, config, setting
from torch import Tensor, nn

import dynext as dx
from dynext.errors import FitError
from dynext.testing import check_net


class Channelwise(nn.Module):
    """A mask for each channel, from both features' means (squeeze and excitation, told by a later layer)."""

    def __init__(self, own: tuple[int, ...], later: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.mask = nn.Sequential(
            nn.Linear(own[0] + later[0], hidden), nn.ReLU(), nn.Linear(hidden, own[0]), nn.Sigmoid()
        )

    def forward(self, own: Tensor, later: Tensor) -> Tensor:
        return self.mask(torch.cat([own.mean((2, 3)), later.mean((2, 3))], 1))[:, :, None, None].expand_as(own)


def test_a_module_of_ones_own_is_lent_learns_and_is_taken_away() -> None:
    net, samples = setting(METHODS["joint"])
    lent = dx.prune.lend_attention(net, module=Channelwise)
    assert all(isinstance(module, Channelwise) for module in lent.attention_modules)
    before = [p.clone() for p in lent.attention_modules.parameters()]
    learned = dx.prune.distill_attention(lent, samples, config(steps=3))
    assert any(not torch.equal(p, q) for p, q in zip(before, learned.attention_modules.parameters(), strict=True))
    check_net(dx.prune.detach(learned), samples.take(torch.arange(8)).x)


class Raw(nn.Module):
    def __init__(self, own: tuple[int, ...], later: tuple[int, ...], hidden: int) -> None:
        super().__init__()

    def forward(self, own: Tensor, later: Tensor) -> Tensor:
        return own * 3 + 2


class Small(Raw):
    def forward(self, own: Tensor, later: Tensor) -> Tensor:
        return own.mean((2, 3)).sigmoid()


class Failing(Raw):
    def forward(self, own: Tensor, later: Tensor) -> Tensor:
        return own + later[:, :1, :1]


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Raw, r"Raw for features .* gives .* to .*; give a mask in \[0, 1\]"),
        (Small, "give a mask of the feature's shape"),
        (Failing, "Failing .* fails .*; it is called module.f, f_later."),
        (lambda own, later, hidden: 3, "gave a int; give an nn.Module"),
    ],
)
def test_what_makes_no_mask_is_refused(module: object, said: str) -> None:
    net, _ = setting(METHODS["joint"])
    with pytest.raises(FitError, match=said):
        dx.prune.lend_attention(net, module=module)
