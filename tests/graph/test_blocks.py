"""Which stages a sample may skip."""

import pytest
import torch
from torch import Tensor, nn
from zoo import build, conv

from dynext.graph.split import split


class Around(nn.Module):
    """A stem, two pieces under test, a head."""

    def __init__(self, piece) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.head = conv(3, 8), piece(), piece(), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.stem(x))).mean((2, 3)))


class Piece(nn.Module):
    def __init__(self, join) -> None:
        super().__init__()
        self.inner, self.join, self.norm, self.act = nn.Conv2d(8, 8, 3, 1, 1), join, nn.BatchNorm2d(8), nn.GELU()
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self, x, self.inner(x))


JOINS = {
    "addition": (True, lambda net, x, f: x + f),
    "other side": (True, lambda net, x, f: torch.add(f, x)),
    "activation behind": (True, lambda net, x, f: net.act(x + f)),
    "dropout on the way": (True, lambda net, x, f: net.drop(x) + net.drop(f)),
    "reshaped and back": (True, lambda net, x, f: (x.flatten(2) + f.flatten(2)).view(x.shape)),
    "two additions": (True, lambda net, x, f: torch.relu(x + f) + torch.tanh(f)),
    "nothing added": (False, lambda net, x, f: net.act(f)),
    "activation before": (False, lambda net, x, f: torch.relu(x) + f),
    "gated": (False, lambda net, x, f: x * torch.sigmoid(f)),
    "turned": (False, lambda net, x, f: x.transpose(2, 3) + f),
    "pooled": (False, lambda net, x, f: x.mean((2, 3), keepdim=True) + f),
}


@pytest.mark.parametrize("name", JOINS)
def test_identity_through_an_addition(name):
    skippable, join = JOINS[name]
    model, x = build(lambda: Around(lambda: Piece(join)))
    staged = split(model, x, granularity="block")
    skippable_names = [stage.name for stage in staged.stages if stage.skippable]
    assert skippable_names == (["first", "second"] if skippable else [])
    torch.testing.assert_close(staged(x), model(x), rtol=0, atol=0)


def test_a_norm_behind_the_addition_stays_outside_and_always_runs():
    model, x = build(lambda: Around(lambda: Piece(lambda net, x, f: net.norm(x + f))))
    staged = split(model, x, granularity="block")
    assert [stage.name for stage in staged.stages if stage.skippable] == ["add", "add_1"]
    torch.testing.assert_close(staged(x), model(x), rtol=0, atol=0)


def test_a_whole_transformer_block_is_one_stage():
    from zoo import NETS

    staged = split(*NETS["vit_like"](), granularity="block")
    assert [stage.name for stage in staged.stages if stage.skippable] == [f"blocks.{index}" for index in range(4)]


def test_blocks_without_modules_keep_their_activation():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = conv(3, 8), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
            self.head = nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = torch.relu(x + self.a(x))
            x = torch.relu(x + self.b(x))
            return self.head(x.mean((2, 3)))

    staged = split(*build(Bare), granularity="block")
    assert [(stage.name, stage.skippable) for stage in staged.stages] == [
        ("stem", False),
        ("relu", True),
        ("relu_1", True),
        ("output", False),
    ]
