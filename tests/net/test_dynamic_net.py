"""Attaching exits: copies, places, names, costs."""

import pytest
import torch
from zoo import NETS

from dynext.data.samples import Samples
from dynext.errors import PolicyError, SourceError, SplitError
from dynext.graph.split import split
from dynext.modules.exits import default_heads, pooled_heads
from dynext.modules.modes import batch_statistics
from dynext.net.attach import attach
from dynext.net.collect import collect
from dynext.net.dynamic_net import DynamicNet
from dynext.net.measure import measure
from dynext.runtime.cost import CostTable
from dynext.types import InputSpec

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)


def residual() -> tuple[DynamicNet, torch.Tensor]:
    model, example = NETS["residual"]()
    staged = split(model, example)
    return attach(staged, default_heads(staged.num_classes)), torch.randn(6, *example.shape[1:])


def test_attaching_copies_and_is_seeded() -> None:
    model, example = NETS["residual"]()
    staged = split(model, example)
    before = torch.get_rng_state()
    first, again, other = (attach(staged, pooled_heads(staged.num_classes), seed=s) for s in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.exits[0].classifier.weight, again.exits[0].classifier.weight)
    assert not torch.equal(first.exits[0].classifier.weight, other.exits[0].classifier.weight)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    torch.testing.assert_close(staged(example), model(example))


def test_exits_stand_where_asked() -> None:
    model, example = NETS["residual"]()
    staged = split(model, example)
    names = [stage.name for stage in staged.stages]
    heads = pooled_heads(staged.num_classes)
    assert attach(staged, heads, at=[names[1]]).exit_names == (names[1], "output")
    assert attach(staged, heads, at=[0]).exit_names == (names[0], "output")
    with pytest.raises(SplitError, match=r"is one name; give a list of them: at=\['"):
        attach(staged, heads, at=names[1])
    with pytest.raises(SplitError, match="no exit can stand after 'nowhere'"):
        attach(staged, heads, at=["nowhere"])
    with pytest.raises(SplitError, match="no exit can stand after"):
        attach(staged, heads, at=[len(names) - 1])


def test_costs_add_up() -> None:
    net, x = residual()
    assert net.trunk_macs_e[-1] == sum(stage.macs for stage in net.staged.stages)
    assert list(net.trunk_macs_e) == sorted(net.trunk_macs_e)
    assert net.head_macs_e[-1] == 0
    assert net.all_exits(x).shape == (6, net.num_exits, net.num_classes)


def test_collect_says_its_basis_and_reads_only() -> None:
    net, x = residual()
    source = Samples(pixels=x, spec=SPEC)
    net.train()
    table = collect(net, source)
    assert table.basis == "teacher"
    assert not table.synthetic
    assert all(m.training for m in net.modules())
    torch.testing.assert_close(table.logits_nek, net.eval().all_exits(x).detach(), rtol=1e-4, atol=1e-5)
    labelled = collect(net, Samples(pixels=x, spec=SPEC, y=torch.zeros(6, dtype=torch.int64)))
    assert labelled.basis == "labels"
    net.cost = measure(net, rows=(1, 2), budget_ms=0.5)
    assert collect(net, source).trunk_ms_e[-1] == pytest.approx(net.cost.static(1))
    with pytest.raises(SourceError, match="no samples"):
        collect(net, source.subset(torch.arange(0)))
    other = InputSpec(shape=(3, 4, 4), mean=(0.0,) * 3, std=(1.0,) * 3)
    with pytest.raises(SourceError, match=r"the model expects \(3, 8, 8\)"):
        collect(net, Samples(pixels=torch.zeros(2, 3, 4, 4), spec=other))


def test_batch_statistics_move_the_answers_and_no_buffer() -> None:
    net, x = residual()
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    usual = net(x)
    with batch_statistics(net):
        shifted = net(x * 3 + 1)
        torch.testing.assert_close(shifted, net(x * 3 + 1))
    assert not torch.allclose(shifted, net(x * 3 + 1))
    torch.testing.assert_close(net(x), usual, rtol=0, atol=0)
    assert all(torch.equal(buffers[name], b) for name, b in net.named_buffers())
    with pytest.raises(ZeroDivisionError), batch_statistics(net):
        raise ZeroDivisionError
    assert not any(m.training for m in net.modules())


def test_cost_tables_interpolate_and_round_trip() -> None:
    cost = CostTable(
        rows=(1, 4), stage_ms=((1.0, 4.0),), exit_ms=((0.1, 0.4),), gather_ms=((0.0, 0.1),), device="cpu", threads=1
    )
    assert [cost.stage(0, r) for r in (1, 2, 4, 8)] == pytest.approx([1, 2, 4, 8])
    assert cost.exit(1, 4) == 0
    assert CostTable.from_dict(cost.to_dict()) == cost
    with pytest.raises(PolicyError, match="measure it anew"):
        CostTable.from_dict({**cost.to_dict(), "rows": [4, 1]})
