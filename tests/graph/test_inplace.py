"""In-place work becomes functional and means the same, other names of a tensor included."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynext.graph.inplace import remove_inplace, reuse_buffers, with_item
from dynext.graph.private import private_copy
from dynext.graph.probe import probe
from dynext.graph.trace import trace


class Changes(nn.Module):
    """Runs one in-place recipe and reads the changed tensor under its old name."""

    def __init__(self, recipe) -> None:
        super().__init__()
        self.recipe, self.relu, self.same, self.drop = recipe, nn.ReLU(True), nn.Identity(), nn.Dropout(0.5, True)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        out = self.recipe(self, x)
        return out * 10 + x


def augmented(_, x):
    y = x
    y += 1
    y *= 2
    return y


def indexed(_, x):
    x[:, 0] = 7.0
    return x.sum(-1, keepdim=True)


def unassigned(_, x):
    x.add_(1)
    return x.relu()


RECIPES = {
    "module": lambda net, x: net.relu(x),
    "module twice": lambda net, x: net.relu(net.relu(x) - 0.5),
    "keyword": lambda net, x: F.relu(x, inplace=True),
    "positional": lambda net, x: F.leaky_relu(x, 0.1, True),
    "method": lambda net, x: x.clamp_(min=0.1),
    "function": lambda net, x: torch.relu_(x),
    "no twin": lambda net, x: x.fill_diagonal_(3.0),
    "through an identity": lambda net, x: net.relu(net.same(x)),
    "dropout": lambda net, x: net.drop(x),
    "augmented": augmented,
    "indexed": indexed,
    "unassigned": unassigned,
}


@pytest.mark.parametrize("name", RECIPES)
def test_same_answer_and_nothing_but_copies_changes(name):
    model, x = Changes(RECIPES[name]).eval(), torch.randn(4, 4)
    wanted = model(x)
    traced = trace(private_copy(model))
    records, _ = probe(traced, x)
    remove_inplace(traced, {node: record.changed for node, record in records.items()})
    again, out = probe(traced, x)
    torch.testing.assert_close(out, wanted, rtol=0, atol=0)
    assert all("copy_of" in name.meta for record in again.values() for name in record.changed)


@pytest.mark.parametrize("name", ["module", "dropout"])
def test_switches_are_off_for_training_too(name):
    traced = trace(private_copy(Changes(RECIPES[name]).eval()))
    remove_inplace(traced, {})
    called = [traced.get_submodule(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    assert called
    assert not any(module.inplace for module in called)


def test_with_item_leaves_its_argument():
    x = torch.zeros(2, 2)
    assert with_item(x, (0, 1), 5.0).tolist() == [[0.0, 5.0], [0.0, 0.0]]
    assert not x.any()


class Reuses(nn.Module):
    """One activation after what ``before`` gives, and perhaps a second reader of it."""

    def __init__(self, before, activation, *, read_again: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.relu, self.drop = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout()
        self.before, self.activation, self.read_again = before, activation, read_again

    def forward(self, x: Tensor) -> Tensor:
        x_before = self.before(self, x)
        out = self.activation(self, x_before)
        return out + x_before if self.read_again else out * 2


NEW = {
    "convolution": lambda net, x: net.conv(x),
    "normalization": lambda net, x: net.norm(x),
    "sum": lambda net, x: net.conv(x) + x,
}
ACTIVATIONS = {
    "module": lambda net, x: net.relu(x),
    "function": lambda net, x: F.silu(x),
    "torch's": lambda net, x: torch.relu(x),
    "method": lambda net, x: x.relu(),
}


@pytest.mark.parametrize("before", NEW)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_overwrite_what_was_made_for_them(before, activation):
    model, x = Reuses(NEW[before], ACTIVATIONS[activation]).eval(), torch.randn(2, 3, 4, 4, requires_grad=True)
    wanted = model(x)
    (gradient,) = torch.autograd.grad(wanted.square().sum(), x)
    body = trace(private_copy(model))
    reuse_buffers(body)
    records, _ = probe(body, x.detach())
    assert [name.target for record in records.values() for name in record.changed]
    out = body(x)
    torch.testing.assert_close(out, wanted, rtol=0, atol=0)
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), x)[0], gradient)
    assert not model.relu.inplace


@pytest.mark.parametrize(
    "model",
    [
        Reuses(lambda net, x: x, ACTIVATIONS["function"]),
        Reuses(lambda net, x: net.drop(x), ACTIVATIONS["module"]),
        Reuses(lambda net, x: x.flatten(1), ACTIVATIONS["function"]),
        Reuses(lambda net, x: torch.sigmoid(x), ACTIVATIONS["function"]),
        Reuses(lambda net, x: x + 1, lambda net, x: F.relu(x, False)),
        Reuses(NEW["convolution"], ACTIVATIONS["module"], read_again=True),
    ],
)
def test_what_somebody_else_may_read_is_left_alone(model):
    body = trace(private_copy(model.eval()))
    reuse_buffers(body)
    records, _ = probe(body, torch.randn(2, 3, 4, 4))
    assert not any(record.changed for record in records.values())


def test_a_module_called_twice_is_switched_where_it_may_be():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), relu := nn.ReLU(), nn.Flatten(), relu).eval()
    body = trace(private_copy(model))
    reuse_buffers(body)
    targets = [node.target for node in body.graph.nodes if node.op == "call_module"]
    assert targets == ["0", "1_in_place", "2", "1"]
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(body(x), model(x), rtol=0, atol=0)
