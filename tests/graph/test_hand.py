"""Stages given by hand: checked as they are chained."""

import pytest
import torch
from torch import Tensor, nn
from zoo import NETS

from dynext.errors import SplitError
from dynext.graph import stages_by_hand
from dynext.graph.macs import count_macs
from dynext.graph.split import split


class Fork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x), x


class Join(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b if a.sum() < 1e9 else a


def head() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 10))


X = torch.randn(1, 3, 4, 4)


def test_chained_with_several_live_tensors():
    fork, join, last = Fork(), Join(), head().train()
    staged = stages_by_hand([fork, join, last], X, names=["fork", "join"])
    torch.testing.assert_close(staged(X), last(join(*fork(X))), rtol=0, atol=0)
    assert staged.cuts == ("fork", "join")
    assert [stage.name for stage in staged.stages] == ["fork", "join", "output"]
    assert [stage.num_live_out for stage in staged.stages] == [2, 1, 1]
    assert [stage.macs for stage in staged.stages] == [count_macs(fork, X), 0, 480]
    assert (staged.num_classes, staged.input_shape, staged.granularity) == (10, (3, 4, 4), "hand")
    assert last.training
    assert not staged.training


def test_the_modules_are_copied_and_what_they_share_stays_shared():
    conv = nn.Conv2d(3, 3, 3, 1, 1)
    staged = stages_by_hand([conv, nn.Sequential(conv), head()], X)
    assert staged.cuts == ("stage0", "stage1")
    assert staged.stages[0].body is staged.stages[1].body[0]
    assert staged.stages[0].body is not conv
    assert staged.stages[1].skippable


def test_stages_of_a_split_net_chain_again():
    model, x = NETS["unet_like"]()
    bodies = [stage.body for stage in split(model, x, ["down1", "up1"]).stages]
    torch.testing.assert_close(stages_by_hand(bodies, x)(x), model(x), rtol=0, atol=0)


class SumsRows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(0, keepdim=True)


class GivesDict(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"x": x}


@pytest.mark.parametrize(
    ("modules", "names", "says"),
    [
        (
            [Fork(), head()],
            None,
            r"stage 1 \('output'\) cannot take what stage 0 gives \(\(2, 3, 4, 4\), \(2, 3, 4, 4\)",
        ),
        ([nn.Conv2d(4, 3, 1), head()], ["stem"], r"stage 0 \('stem'\) cannot take what the example gives"),
        ([SumsRows(), head()], None, "samples must come first"),
        ([GivesDict(), head()], None, "gives a dict; expected a tensor or a tuple"),
        ([nn.Identity(), Fork()], None, r"the last module gives .*expected logits \[b k\]"),
        ([nn.Identity(), nn.Identity()], None, r"expected logits \[b k\]"),
        ([head()], None, "1 modules given"),
        ([nn.Identity(), head()], ["a", "b"], "give 1 different ones"),
        ([nn.Identity(), nn.Identity(), head()], ["a", "a"], "give 2 different ones"),
        ([nn.Identity(), head()], ["output"], "give 1 different ones"),
    ],
)
def test_refusals(modules, names, says):
    with pytest.raises(SplitError, match=says):
        stages_by_hand(modules, X, names)
