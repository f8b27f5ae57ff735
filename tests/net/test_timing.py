"""Side-by-side timing counts the samples it should and never asserts a time."""

import pytest
import torch
from zoo import NETS

from dynext.errors import PolicyError, SourceError
from dynext.graph.split import split
from dynext.modules.exits import default_heads
from dynext.net import measure as measuring
from dynext.net.attach import attach
from dynext.net.measure import measure
from dynext.net.timing import side_by_side
from dynext.policy.policy import Policy


def test_both_sides_see_the_same_samples() -> None:
    model, example = NETS["residual"]()
    staged = split(model, example)
    net = attach(staged, default_heads(staged.num_classes))
    batches: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _, given: batches.append(given[0]))
    x = torch.randn(5, *example.shape[1:])
    timings = side_by_side(model, net, Policy.never(net.num_exits), x, batches=(1, 4), budget_s=0)
    assert [t.batch for t in timings] == [1, 4]
    assert all(t.speedup == pytest.approx(t.static_ms / t.dynamic_ms) for t in timings)
    assert [len(batch) for batch in batches] == [1] * 10 + [4] * 10
    assert torch.equal(batches[5], x[:1])
    with pytest.raises(SourceError, match="no samples to time on"):
        side_by_side(model, net, Policy.never(net.num_exits), x[:0])


def test_measuring_leaves_a_net_in_training_as_it_is() -> None:
    model, example = NETS["residual"]()
    staged = split(model, example)
    net = attach(staged, default_heads(staged.num_classes)).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    measure(net, rows=(2,), budget_ms=0.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(module.training for module in net.modules())
    for rows in ((), (0, 4), (4, 1)):
        with pytest.raises(PolicyError, match="give numbers of samples to time, ascending"):
            measure(net, rows=rows)


def test_batches_that_take_long_are_left_out_and_time_grows_with_the_samples_from_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, example = NETS["residual"]()
    staged = split(model, example)
    net = attach(staged, default_heads(staged.num_classes))
    monkeypatch.setattr(measuring, "LONG_MS", 0.0)
    table = measure(net, rows=(2, 4), budget_ms=0.0)
    assert table.rows == (2,)
    assert table.static(6) == pytest.approx(3 * table.static(2))
