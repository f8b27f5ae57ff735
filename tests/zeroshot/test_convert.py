"""The main job in one call, in its four ways, on a net of a few channels."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from zoo import NETS

from dynext.data.samples import Samples
from dynext.errors import DynextError, FitError, PolicyError, SourceError
from dynext.net.collect import collect
from dynext.policy.policy import Policy
from dynext.policy.table import simulate
from dynext.types import InputSpec
from dynext.zeroshot import convert_steps, thresholds
from dynext.zeroshot.convert import Conversion, convert
from dynext.zeroshot.convert_checks import spec_for
from dynext.zeroshot.cross_fit import Views
from dynext.zeroshot.rounds import Joined
from dynext.zeroshot.settings import (
    TRAININGS,
    Frozen,
    Joint,
    Run,
    Skip,
    Synthesis,
    Target,
    Unlabelled,
    training_name,
    training_named,
)
from dynext.zeroshot.synth.synthesize import synthesize
from dynext.zeroshot.time_budget import Effort

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)
LEAVES = Synthesis(method="leaves", n=64)
QUICK = Frozen(steps=8)
QUIET = Run(progress=False)
NINE = Samples(pixels=torch.zeros(2, 3, 9, 9), spec=replace(SPEC, shape=(3, 9, 9)))
VECTORS = InputSpec(shape=(2,), mean=(0.0,) * 2, std=(1.0,) * 2)
SMALL = {"example": SPEC, "synthesis": LEAVES, "training": QUICK, "run": QUIET}


def teacher() -> torch.nn.Module:
    return NETS["residual"]()[0]


def real(count: int = 48) -> Samples:
    pixels = torch.randint(256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    return Samples(pixels=pixels, spec=SPEC)


def same_weights(one: Conversion, two: Conversion) -> bool:
    other = two.net.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in one.net.state_dict().items())


def test_without_any_image() -> None:
    model = teacher()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    found = convert(model, **SMALL)
    assert found.table.synthetic
    assert found.table.basis == "teacher"
    assert "synthesized" in found.policy.note
    assert found.net.cost is not None
    assert found.provenance["calibration_rows"] == 0
    x = SPEC.normalize(real(4).pixels)
    torch.testing.assert_close(found.net(x), model(x), rtol=1e-5, atol=1e-5)
    assert found.net.run(x, found.policy).logits.shape == (4, found.net.num_classes)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())
    assert same_weights(found, convert(model, **SMALL))


def test_calibration_rows_judge_but_do_not_teach() -> None:
    model = teacher()
    bare, judged = convert(model, **SMALL), convert(model, calibrate=real(), **SMALL)
    assert not same_weights(bare, judged)  # class biases
    for conversion in (bare, judged):
        for exit in conversion.net.exits:
            torch.nn.init.zeros_(exit.classifier.bias)
    assert same_weights(bare, judged)
    assert not judged.table.synthetic
    assert len(judged.table) == 48
    assert "48 unlabelled samples" in judged.table.rows


def test_distilling_on_calibration_rows_judges_on_answers_of_exits_that_did_not_see_them() -> None:
    model = teacher()
    found = convert(model, calibrate=Unlabelled(real(), distill=True), **SMALL)
    assert "were not distilled on it" in found.table.rows
    assert len(found.table) == 48
    x = SPEC.normalize(real().pixels)
    final = found.net.all_exits(x)
    torch.testing.assert_close(found.table.logits_nek[:, -1], final[:, -1].detach(), rtol=1e-2, atol=1e-2)
    assert not torch.allclose(found.table.logits_nek[:, 0], final[:, 0].detach(), rtol=1e-3, atol=1e-3)


def test_rows_of_ones_own_are_used_instead_of_synthesized_ones() -> None:
    both = real(112)
    rows, others = both.subset(torch.arange(64)), both.subset(torch.arange(64, 112))
    found = convert(teacher(), **{**SMALL, "synthesis": rows}, calibrate=others)
    assert found.samples is rows
    assert found.provenance["method"] == "given samples"


@pytest.mark.parametrize("joined", [False, True])
def test_exits_are_not_judged_on_the_bank_that_they_were_distilled_on(
    joined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thresholds, "ROWS", 64)
    bank = synthesize(teacher(), shape=SPEC.shape, n=64, seed=1, method="leaves", spec=SPEC, progress=False)
    given = Joined(parts=[bank]) if joined else bank
    found = convert(teacher(), **{**SMALL, "synthesis": given})  # judges by seed 1, if free
    assert not torch.equal(found.table.logits_nek, collect(found.net, bank).logits_nek)


@pytest.mark.parametrize("calibrated", [False, True])
def test_jointly_the_trunk_moves_and_what_it_loses_is_counted(calibrated: bool) -> None:
    model = teacher()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = Unlabelled(real(), distill=True) if calibrated else None
    found = convert(model, calibrate=images, **{**SMALL, "training": Joint(steps=8, joint_steps=4)})
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    x = SPEC.normalize(real(8).pixels)
    assert not torch.equal(found.net(x), model(x))
    assert found.provenance["training"] == {"kind": "joint", "steps": 8, "joint_steps": 4}
    assert found.provenance["joint"]["steps"] == 4
    last = found.table.logits_nek[:, -1]
    if calibrated:
        torch.testing.assert_close(last, found.net(SPEC.normalize(real().pixels)).detach(), rtol=1e-2, atol=1e-2)
    assert (found.provenance["shift"] is None) == calibrated


def test_a_killed_conversion_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = convert(teacher(), **SMALL)
    kept = {**SMALL, "run": replace(QUIET, folder=tmp_path)}
    with monkeypatch.context() as patch:
        patch.setattr(convert_steps, "choose_unseen", dying)
        with pytest.raises(KeyboardInterrupt):
            convert(teacher(), **kept)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bank-leaves-0", "convert.json", "heads.ckpt"]
    assert same_weights(whole, convert(teacher(), **kept))
    with pytest.raises(FitError, match=r"another run .*synthesis\.method was leaves, is objects"):
        convert(teacher(), **{**kept, "synthesis": replace(LEAVES, method="objects")})  # not the leaves' exits again
    (tmp_path / "convert.json").write_text("[")
    with pytest.raises(SourceError, match=r"convert\.json is damaged"):
        convert(teacher(), **kept)


def dying(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_what_may_be_lost_can_be_changed_when_a_conversion_goes_on(tmp_path: Path) -> None:
    kept = {**SMALL, "run": replace(QUIET, folder=tmp_path), "calibrate": real()}
    strict = convert(teacher(), **kept, target=Target(max_drop=0.0))
    loose = convert(teacher(), **kept, target=Target(max_drop=1.0))
    assert same_weights(strict, loose)
    assert strict.policy.threshold_e != loose.policy.threshold_e


def test_the_record_is_the_settings() -> None:
    found = convert(teacher(), calibrate=real(), **SMALL, target=Target(max_drop=0.5))
    assert found.provenance["synthesis"] == {"method": "leaves", "n": 64, "options": {}}
    assert found.provenance["training"] == {"kind": "frozen", "steps": 8}
    assert found.provenance["target"] == {"max_drop": 0.5, "budget": None, "when_unsafe": "static"}
    assert found.provenance["run"] == {"seed": 0, "minutes": None}
    assert found.provenance["calibrate"]["samples"]["rows"] == 48
    json.dumps(found.provenance)


def test_progress_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="dynext"):
        convert(teacher(), **SMALL)
    told = [record.getMessage() for record in caplog.records if record.levelname == "INFO"]
    assert [message.split()[0] for message in told] == ["split", "64", "distilled"]


def test_a_table_that_says_no_gives_the_static_net() -> None:
    found = convert(teacher(), calibrate=real(), target=Target(max_drop=0.0), **SMALL)
    assert found.policy.threshold_e == Policy.never(found.net.num_exits).threshold_e
    assert "no exit is safe" in found.policy.note
    assert simulate(found.table, found.policy).saved == 0


def test_what_is_missing_is_said() -> None:
    with pytest.raises(SourceError, match=r"give an example batch or a dx\.InputSpec"):
        convert(teacher())
    with pytest.raises(FitError, match=r"training='joint'; give dx\.Frozen"):
        convert(teacher(), **{**SMALL, "training": "joint"})
    with pytest.raises(SourceError, match="they must agree"):
        convert(teacher(), torch.zeros(1, 3, 9, 9), calibrate=real())


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda: Synthesis(n=0), "n=0; ask for at least one sample"),
        (lambda: Frozen(steps=-1), "steps=-1; give 0 or more"),
        (lambda: Joint(joint_steps=0), "joint_steps=0; give 1 or more"),
        (lambda: Skip("lottery"), r"Skip\('lottery'\); give one of skipnet, blockdrop, static"),
        (lambda: Skip(skip_steps=1), "skip_steps=1; give 2 or more"),
        (lambda: Target(max_drop=5), "max_drop 5; give a share"),
        (lambda: Target(budget=0.0), "budget 0.0; give a positive share"),
        (lambda: Run(minutes=0), "minutes=0; give a positive number"),
    ],
)
def test_settings_that_make_no_sense_cannot_be_written_down(wrong: Callable[[], object], told: str) -> None:
    with pytest.raises(DynextError, match=told):
        wrong()


def test_trainings_by_name() -> None:
    for name in TRAININGS:
        training = training_named(name, steps=3, joint_steps=4, skip_steps=5)
        assert (training_name(training), training.steps) == (name, 3)
    assert training_named("joint", steps=3, joint_steps=4) == Joint(steps=3, joint_steps=4)


def test_minutes_plan_samples_and_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    effort = Effort(rows=32, steps=4, joint_steps=3, seconds=1.0)
    monkeypatch.setattr(convert_steps, "effort_for", lambda *_, **__: effort)
    found = convert(teacher(), **{**SMALL, "run": replace(QUIET, minutes=1), "training": Joint()})
    assert len(found.samples) == 32
    assert found.provenance["training"] == {"kind": "joint", "steps": 4, "joint_steps": 3}
    assert found.provenance["synthesis"]["n"] == 32
    given = convert(teacher(), **{**SMALL, "run": replace(QUIET, minutes=1), "synthesis": real()})
    assert len(given.samples) == 48
    assert given.provenance["training"]["steps"] == 4


class Ending(nn.Module):
    """The residual net with something behind it."""

    def __init__(self, behind: nn.Module) -> None:
        super().__init__()
        self.net, self.behind = teacher(), behind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.behind(self.net(x))


@pytest.mark.parametrize(
    ("behind", "told"),
    [
        (nn.Softmax(1), "answers probabilities .* leave its softmax out"),
        (nn.Linear(10, 1), "answers one number a sample; exits need a logit for each"),
    ],
)
def test_answers_that_are_no_logits_are_refused(behind: nn.Module, told: str) -> None:
    with pytest.raises(SourceError, match=told):
        convert(Ending(behind).eval(), **SMALL)


def test_rows_say_how_they_are_normalized() -> None:
    own = InputSpec(shape=(3, 8, 8), mean=(0.4,) * 3, std=(0.2,) * 3)
    rows = replace(real(), spec=own)
    assert spec_for(torch.zeros(1, 3, 8, 8), None, rows) == own
    assert spec_for(None, None, rows) == own
    assert spec_for(own, None, None) == own
    assert spec_for(torch.zeros(1, 3, 8, 8), None, None).mean == (0.5,) * 3
    with pytest.raises(
        SourceError, match=r"calibrate is normalized by mean \(0\.4, .*give the samples the net's own spec"
    ):
        convert(teacher(), calibrate=rows, **SMALL)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"synthesis": real(0), "calibrate": real()}, "synthesis has no samples"),
        ({"calibrate": real(0)}, "calibrate has no samples"),
        ({"calibrate": object()}, "calibrate: a object holds no samples that can be read; give"),
        ({"synthesis": object()}, "synthesis: a object holds no samples that can be read; give"),
        ({"calibrate": NINE}, "the model expects"),
        ({"example": torch.zeros(3, 8, 8)}, r"the example is of shape \(3, 8, 8\); give a batch"),
        ({"example": [0.0]}, "the example is a list; give a batch"),
        ({"example": VECTORS}, r"samples of shape \(2,\); give \(channels"),
    ],
)
def test_rows_that_cannot_be_used_are_refused_before_the_work(given: dict, told: str) -> None:
    with pytest.raises(SourceError, match=told):
        convert(teacher(), **{**SMALL, **given})


def test_a_budget_that_nothing_can_meet_is_refused_before_the_work(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="dynext"), pytest.raises(PolicyError, match="cheapest within reach is 0"):
        convert(teacher(), **SMALL, target=Target(budget=0.001))
    assert caplog.messages == []


def test_views_begin_with_the_rows_themselves_and_repeat() -> None:
    rows = real(10)
    views = Views(rows=rows, count=3, seed=0)
    first, again = (torch.cat([batch.x for batch in views]) for _ in range(2))
    assert len(views) == len(first) == 30
    assert torch.equal(first, again)
    torch.testing.assert_close(first[:10], SPEC.normalize(rows.pixels))
    assert not torch.equal(first[10:20], first[:10])
    assert not torch.equal(first[20:], first[10:20])
