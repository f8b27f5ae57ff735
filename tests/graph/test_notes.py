"""A split that cannot save much says so, with the module, the line and the reason."""

import logging

import pytest
import torch
from torch import Tensor, nn
from zoo import NETS, build, conv

import dynext as dx
from dynext.errors import SplitError
from dynext.graph.split import split


class Trunk(nn.Module):
    """Most of the net; looks at what its tensors hold."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv(8, 8), conv(8, 8), conv(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        if x.isnan().any():
            x = x.nan_to_num()
        return self.layers(x)


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.trunk, self.head = nn.Conv2d(3, 8, 1), Trunk(), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(self.stem(x)).mean((2, 3)))


def test_a_large_module_kept_whole_is_noted():
    (note,) = split(*build(Whole)).notes
    assert note.startswith("trunk (Trunk) holds 9")
    assert "kept whole" in note
    assert "`if x.isnan().any():` (test_notes.py, line 23)" in note
    assert note in str(split(*build(Whole)))


def test_a_late_first_exit_is_noted():
    model, x = NETS["plain"]()
    last = split(model, x).cuts[-1]
    assert split(model, x, [last]).notes == ()
    staged = split(*build(Whole), ["trunk"])
    assert any("first exit would stand at 99." in note for note in staged.notes)


class Mixed(nn.Module):
    """Samples lie second from the start to the end: nothing can be cut until then."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(3, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))
        self.last, self.head = nn.Linear(16, 4), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x.flatten(2).permute(2, 0, 1))
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(self.last(x.mean(0)))


def test_what_is_in_the_way_is_named_with_its_line():
    (note,) = split(*build(Mixed)).notes
    assert "first exit would stand at 100.0 %" in note
    assert "samples are not the batch's" in note
    assert "`x = layer(x).relu()` (test_notes.py, line" in note


def test_no_cut_at_all_names_the_module_that_hides_them():
    model = nn.Sequential(Trunk(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(SplitError, match=r"no cut at all: .*Trunk.*test_notes.py, line 23"):
        split(model, torch.randn(2, 8, 8, 8))


def test_convert_says_it_before_it_works(caplog):
    model, x = build(Whole)
    with caplog.at_level(logging.WARNING, "dynext"), pytest.raises(dx.DynextError):
        dx.convert(model, x, target=dx.Target(budget=1e-6))
    assert any("trunk (Trunk)" in record.getMessage() for record in caplog.records)
