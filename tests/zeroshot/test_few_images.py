"""Having images is never worse than having none: where they are too few to judge by, they only object."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tables import make_table
from zoo import NETS

from dynext.data.samples import Samples
from dynext.policy.choose import choose
from dynext.policy.policy import Policy
from dynext.policy.table import simulate
from dynext.types import InputSpec
from dynext.zeroshot import convert_steps
from dynext.zeroshot.convert import Conversion, convert
from dynext.zeroshot.few_images import Judged, too_few, without_images
from dynext.zeroshot.settings import Frozen, Run, Skip, Synthesis, Target, Unlabelled
from dynext.zeroshot.thresholds import CAUTION, Unseen

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)
SMALL = {
    "example": SPEC,
    "synthesis": Synthesis(method="leaves", n=64),
    "training": Frozen(steps=8),
    "run": Run(progress=False),
}
KNOWN = Policy(threshold_e=(0.6, None, None, 0.0), temperature_e=(1.0,) * 4, basis="teacher", note="known before.")


def images(count: int) -> Samples:
    pixels = torch.randint(256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    return Samples(pixels=pixels, spec=SPEC)


@pytest.mark.parametrize("allowed", [0.005, 0.01, 0.1])
def test_too_few_are_those_that_prove_nothing_with_none_lost(allowed: float) -> None:
    enough = math.ceil(math.log(0.05) / math.log(1 - allowed))
    assert too_few(enough - 1, allowed)
    assert not too_few(enough, allowed)


def test_what_is_known_is_taken_where_few_images_do_not_contradict_it() -> None:
    table = make_table(60, noise=0.3)
    by_images = Judged(policy=choose(table, max_drop=0.0001), table=table)
    assert simulate(table, by_images.policy).saved == 0
    taken = without_images(Judged(policy=KNOWN, table=table), by_images, max_drop=0.01, allowed=0.0075)
    assert taken is not None
    assert replace(taken.policy, note="") == replace(KNOWN, note="")
    assert taken.policy.note.startswith("known before. 60 images are too few to judge a loss of 1.00% by (398 with")


def test_what_is_known_goes_where_the_images_contradict_it_or_save_more() -> None:
    wrong = make_table(60, noise=9.0)
    never = Judged(policy=Policy.never(4), table=wrong)
    assert without_images(Judged(policy=KNOWN, table=wrong), never, max_drop=0.01, allowed=0.01) is None
    fine = make_table(60, noise=0.3)
    always = Judged(policy=Policy.always(4), table=fine)
    assert without_images(Judged(policy=KNOWN, table=fine), always, max_drop=0.01, allowed=0.01) is None
    dear = make_table(60, noise=0.0, head_macs_e=(9000, 9000, 9000, 0))
    assert (
        without_images(Judged(policy=KNOWN, table=dear), replace(never, table=dear), max_drop=0.5, allowed=0.5) is None
    )


@pytest.fixture
def cautious(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Thresholds as they are chosen without images, at a given height; by images nobody leaves early."""

    def known(threshold: float) -> None:
        def choose_unseen(net, teacher, *_, **__) -> Unseen:
            on = (threshold,) * (net.num_exits - 1)
            policy = Policy(threshold_e=(*on, 0.0), temperature_e=(1.0,) * net.num_exits, note="without images.")
            return Unseen(policy=policy, table=make_table(9, net.num_exits), shift=None)  # type: ignore[arg-type]

        def choose_cautiously(tables, **_) -> Policy:
            return Policy.never(tables[0].num_exits)

        monkeypatch.setattr(convert_steps, "choose_unseen", choose_unseen)
        monkeypatch.setattr(convert_steps, "choose_cautiously", choose_cautiously)

    return known


def converted(count: int | None, **changes: object) -> Conversion:
    given = {**SMALL, "target": Target(max_drop=0.03), **changes}
    return convert(NETS["residual"]()[0], calibrate=None if count is None else images(count), **given)


def test_a_conversion_with_few_images_gives_what_it_gives_without_them(cautious: Callable[[float], None]) -> None:
    cautious(0.11)
    few, none = converted(20), converted(None)
    assert few.policy.threshold_e == none.policy.threshold_e
    assert few.policy.temperature_e == none.policy.temperature_e
    own = none.net.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in few.net.state_dict().items())
    assert "20 images are too few to judge a loss of 3.00% by" in few.policy.note
    assert len(few.table) == 20
    assert simulate(few.table, few.policy).saved > 0


def test_enough_images_judge_alone(cautious: Callable[[float], None]) -> None:
    cautious(0.11)
    enough = math.ceil(math.log(0.05) / math.log(1 - CAUTION * 0.03))
    assert "without images" not in converted(enough).policy.note
    assert "without images" in converted(enough - 1).policy.note


def test_exits_that_learn_from_few_images_and_nets_that_skip_are_judged_alike(
    cautious: Callable[[float], None],
) -> None:
    cautious(0.0)
    given = {**SMALL, "target": Target(max_drop=0.1), "calibrate": Unlabelled(images(20), distill=True, views=2)}
    assert "without images" in convert(NETS["residual"]()[0], **given).policy.note
    skipping = converted(20, training=Skip("static", steps=4, skip_steps=4), target=Target(max_drop=0.1))
    assert "are too few" in skipping.policy.note


def test_a_budget_alone_asks_for_nothing_that_images_could_be_too_few_for(cautious: Callable[[float], None]) -> None:
    cautious(0.11)
    assert "too few" not in converted(20, target=Target(budget=0.9)).policy.note
