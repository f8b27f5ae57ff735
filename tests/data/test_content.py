"""Samples are recognized by what they show: in any order and subset, as bytes or floats, in every verb that chooses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from zoo import NETS

import dynext as dx
from dynext.data import content
from dynext.data.content import Content
from dynext.data.samples import Samples
from dynext.errors import SourceError
from dynext.types import InputSpec

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)


def real(count: int = 48, seed: int = 5) -> Samples:
    pixels = torch.randint(256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Samples(pixels=pixels, spec=SPEC)


def net() -> dx.DynamicNet:
    return dx.attach(dx.split(NETS["residual"]()[0], torch.zeros(1, 3, 8, 8)), dx.default_heads(10))


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_any_order_and_subset_is_recognized_and_nothing_else(batch_size: int) -> None:
    seen = Content.of(real())
    mixed = Samples(pixels=torch.cat([real().pixels.flip(0)[:20], real(9, seed=6).pixels]), spec=SPEC)
    assert seen.known_of(replace(mixed, batch_size=batch_size)).tolist() == [True] * 20 + [False] * 9


def test_floats_half_precision_and_other_layouts_are_the_same_samples() -> None:
    seen = Content.of(real())
    floats = replace(real(), pixels=real().pixels.float() / 255)
    assert bool(seen.known_of(floats).all())
    x = SPEC.normalize(real().pixels)
    assert bool(seen.known(x.double()).all())
    assert bool(seen.known(x.contiguous(memory_format=torch.channels_last)).all())
    assert not bool(seen.known(x.flip(-1)).any())


def test_of_many_samples_the_same_ones_are_kept_whatever_else_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "MOST", 20)
    seen = Content.of(real())
    assert len(seen) == 20
    assert len(seen | Content.of(real(seed=6))) == 20
    assert int(seen.known_of(real()).sum()) == 20
    assert seen == Content.of(replace(real(), pixels=real().pixels.flip(0)))
    assert seen == Content.union([Content.of(real().subset(torch.arange(i, 48, 2))) for i in (0, 1)])


def test_text_brings_them_back_and_other_text_is_refused() -> None:
    seen = Content.of(real())
    assert Content.from_text(seen.to_text()) == seen
    assert not Content.from_text("")
    for wrong in ("no text", "AAAA"):
        with pytest.raises(SourceError, match="no record of samples"):
            Content.from_text(wrong)


def test_synthesized_samples_are_not_recorded() -> None:
    assert not Content.of(replace(real(), bn="batch"))
    assert not Content.of(real()).known_of(replace(real(), bn="batch")).any()


QUICK = {"steps": 1, "batch_size": 8, "progress": False}
LABELLED = replace(real(), y=torch.arange(48) % 10)
TRAINED = {
    "distill": lambda n: dx.distill(n, None, real(), **QUICK),
    "distill_jointly": lambda n: dx.zeroshot.distill_jointly(n, None, real(), **QUICK)[0],
    "joint": lambda n: dx.train.joint(n, LABELLED, **QUICK),
    "shallow_deep": lambda n: dx.train.shallow_deep(n, LABELLED, **QUICK),
    "finetune": lambda n: dx.prune.finetune(n, n.staged, real(), **QUICK),
    "align_exits": lambda n: dx.align.align_exits(n, LABELLED, **QUICK).net,
    "weigh_samples": lambda n: dx.meta.weigh_samples(n, LABELLED, **QUICK),
}


@pytest.mark.parametrize("method", TRAINED)
def test_what_a_net_has_learned_from_is_marked_in_tables_and_notes(method: str) -> None:
    trained = TRAINED[method](net())
    half = Samples(pixels=torch.cat([real().pixels.flip(0)[:24], real(24, seed=6).pixels]), spec=SPEC)
    table = dx.collect(trained, half)
    assert table.learned_n.tolist() == [True] * 24 + [False] * 24
    assert "the exits have learned from 24 of these samples" in dx.choose(table).note
    assert table.subset(torch.arange(24, 48)).num_learned == 0
    assert dx.collect(trained, real(seed=6)).learned_n is None
    assert dx.collect(net(), half).learned_n is None


def test_a_saved_net_and_table_remember(tmp_path: Path) -> None:
    trained = dx.distill(net(), None, real(), **QUICK)
    table = dx.collect(trained, real())
    policy = dx.Policy.never(trained.num_exits)
    dx.save(trained, tmp_path / "net", policy=policy, spec=SPEC, table=table)
    kept = dx.load(tmp_path / "net", model=NETS["residual"]()[0])
    assert kept.net.seen == trained.seen
    assert kept.table.num_learned == 48


def test_exits_that_go_on_with_other_classes_or_smaller_remember() -> None:
    trained = dx.distill(net(), None, real(), **QUICK)
    assert dx.meta.with_classes(trained, 3).seen == trained.seen
    assert dx.align.few_shot(trained, LABELLED).seen == trained.seen
    assert dx.prune.apply_plan(trained, dx.prune.rank(trained, budget=0.9)).seen == trained.seen
    assert dx.meta.adapt(trained, LABELLED).table.num_learned == 48


def test_a_conversion_is_not_judged_by_what_it_learns_from() -> None:
    shuffled = real().subset(torch.randperm(48)[:30])
    with pytest.raises(SourceError, match=r"30 of the 30 samples of calibrate are among those to distil on"):
        dx.convert(NETS["residual"]()[0], calibrate=shuffled, synthesis=real())
