"""Samples that are distilled on and judged by: no answer comes from exits that saw the sample."""

import torch
from zoo import NETS

from dynext.graph.split import split
from dynext.modules.exits import default_heads
from dynext.net.attach import attach
from dynext.zeroshot.cross_fit import FOLDS, held_out_table
from dynext.zeroshot.distill import Features, head_logits

ROWS, VIEWS = 12, 3


def test_each_row_is_answered_by_exits_that_saw_no_view_of_it() -> None:
    model, example = NETS["residual"]()
    staged = split(model, example)
    net = attach(staged, default_heads(staged.num_classes))
    shapes = [e.reduce(tap).shape[1:] for e, tap in zip(net.exits, net.taps(example)[0], strict=True)]
    draw = torch.Generator().manual_seed(0)

    def features(count: int) -> Features:
        return Features(
            reduced_e=tuple(torch.randn(count, *shape, generator=draw).half() for shape in shapes),
            logits_nk=torch.randn(count, staged.num_classes, generator=draw),
        )

    real, synthetic = features(ROWS * VIEWS), features(5)
    row_of_view = torch.arange(ROWS).repeat(VIEWS)
    seen: list[set[int]] = []

    def train(rows: Features, name: str) -> object:
        assert torch.equal(rows.logits_nk[:5], synthetic.logits_nk)
        found = {int(row_of_view[(real.logits_nk == answer).all(1).nonzero()[0, 0]]) for answer in rows.logits_nk[5:]}
        assert len(rows) == 5 + VIEWS * len(found)
        seen.append(found)
        return net

    table = held_out_table(net, real, synthetic, train, rows=ROWS, seed=0)
    assert len(seen) == FOLDS
    # each sample is missing from exactly one training, and every training misses some
    assert sorted(row for found in seen for row in set(range(ROWS)) - found) == list(range(ROWS))
    torch.testing.assert_close(table.logits_nek, head_logits(net, real.subset(torch.arange(ROWS))))
    assert table.basis == "teacher"
    assert not table.synthetic
