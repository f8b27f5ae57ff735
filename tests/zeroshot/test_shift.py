"""The shift between kinds of samples: the formula, and a rule that refuses where kinds contradict one another."""

from dataclasses import replace

import pytest
import torch
from reference import trust as slow
from tables import make_table
from torch import nn

from dynext.data.samples import Samples
from dynext.errors import SourceError
from dynext.policy.calibrate import calibrate
from dynext.policy.table import ExitTable
from dynext.types import InputSpec
from dynext.zeroshot.shift import MAX_BN_DISTANCE, Shift, bn_distance_of, estimate_shift
from dynext.zeroshot.synth.bn_statistics import bn_distance

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)


def sure_but_wrong(table: ExitTable, share: float, seed: int = 0) -> ExitTable:
    """The same kind of samples, except that its early exits are sure of a wrong class on some."""
    logits_nek = table.logits_nek.clone()
    hit_n = torch.rand(len(table), generator=torch.Generator().manual_seed(seed)) < share
    wrong_n = (table.answer_ne[:, -1] + 1) % table.num_classes
    for n in hit_n.nonzero()[:, 0].tolist():
        logits_nek[n, :-1, wrong_n[n]] += 40
    return replace(table, logits_nek=logits_nek)


@pytest.mark.parametrize("max_drop", [0.02, 0.1])
def test_the_overshoot_is_the_worst_of_exits_and_pairs(max_drop: float) -> None:
    one, two = make_table(300, 3), make_table(300, 3, seed=1, noise=2.0)
    wanted = [
        slow.overshoot(
            a.logits_nek[:, [e, 2]].double().numpy(), b.logits_nek[:, [e, 2]].double().numpy(), max_drop, 0.05
        )
        for e in (0, 1)
        for a, b in ((one, two), (two, one))
    ]
    found = estimate_shift([one, two], None, max_drop=max_drop)
    assert found.overshoot == pytest.approx(max(wanted), rel=1e-4)
    assert found.overshoot > 1
    assert found.where.startswith("layer")


def test_rows_of_one_kind_do_not_contradict_themselves() -> None:
    halves = [make_table(2000, seed=seed, noise=0.5) for seed in range(6)]
    found = [estimate_shift([a, b], [0.0, 0.0]) for a, b in zip(halves[::2], halves[1::2], strict=True)]
    assert all(each.overshoot < 1.5 for each in found)


def test_the_more_kinds_differ_the_larger_the_overshoot() -> None:
    table = make_table(2000, noise=0.5)
    found = [
        estimate_shift([table, sure_but_wrong(table, share)], [0.1, 0.3]).overshoot for share in (0.0, 0.02, 0.03, 0.3)
    ]
    assert found == sorted(found)
    assert found[0] == 1
    assert found[-1] > 10


def test_temperatures_move_both_sides_alike() -> None:
    one, two = make_table(500, seed=0), make_table(500, seed=1, noise=2.0)
    temperature = calibrate(one)
    assert estimate_shift([one, two], None, temperature=temperature) == estimate_shift(
        [one, two], None, temperature=temperature.temperature_e
    )
    warmer = [replace(t, logits_nek=t.logits_nek / 3) for t in (one, two)]
    assert estimate_shift(warmer, None).overshoot == pytest.approx(
        estimate_shift([one, two], None, temperature=(3.0,) * 4).overshoot
    )


def test_rows_that_make_no_sense_never_leave() -> None:
    clean = make_table(100, noise=0.0)
    logits_nek = clean.logits_nek.clone()
    logits_nek[:50, 0] = torch.nan
    assert estimate_shift([clean, replace(clean, logits_nek=logits_nek)], None).overshoot == 1


@pytest.mark.parametrize(
    ("distance", "caution"), [(0.0, 1.0), (None, 0.0), (0.3, 0.7), (MAX_BN_DISTANCE, 0.0), (9 * MAX_BN_DISTANCE, 0.0)]
)
def test_the_rule(distance: float | None, caution: float) -> None:
    found = Shift(overshoot=2.0, where="", bn_distance=distance, max_drop=0.01)
    assert found.caution == pytest.approx(caution)
    assert found.refused == (caution == 0)
    assert ("no BatchNorm" in str(found)) == (distance is None)
    assert ("too large a shift" in str(found)) == (found.refused and distance is not None)
    assert ("choose some on a few hundred unlabelled images" in str(found)) == (distance is None)


def test_the_nearest_kind_counts(teacher: nn.Module, layer_norm_teacher: nn.Module) -> None:
    table = make_table(50)
    assert estimate_shift([table, table], [0.7, 0.2]).bn_distance == 0.2
    x = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    rows = Samples(pixels=x, spec=SPEC, batch_size=20)
    wanted = (bn_distance(teacher, x[:20]) + bn_distance(teacher, x[20:])) / 2
    assert bn_distance_of(teacher, rows) == pytest.approx(wanted.item(), rel=1e-5)
    assert bn_distance_of(layer_norm_teacher, rows) is None
    assert bn_distance_of(teacher, rows, rows=1) == pytest.approx(bn_distance(teacher, x[:20]).item(), rel=1e-5)


def test_what_cannot_be_compared_is_refused() -> None:
    table = make_table(20)
    with pytest.raises(SourceError, match="1 tables; a shift needs two"):
        estimate_shift([table], None)
    with pytest.raises(SourceError, match="of different nets"):
        estimate_shift([table, make_table(20, e=3)], None)
    with pytest.raises(SourceError, match="1 BatchNorm distances for 2 tables"):
        estimate_shift([table, table], [0.1])
