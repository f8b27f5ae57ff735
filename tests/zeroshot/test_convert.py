"""The main job in one call, in its four ways, on a net of a few channels."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from zoo import NETS

from dynext.data.samples import Samples
from dynext.errors import FitError, PolicyError, SourceError
from dynext.net.collect import collect
from dynext.policy.policy import Policy
from dynext.policy.table import simulate
from dynext.types import InputSpec
from dynext.zeroshot import thresholds
from dynext.zeroshot.convert import Conversion, convert
from dynext.zeroshot.convert_checks import spec_for
from dynext.zeroshot.cross_fit import Views
from dynext.zeroshot.rounds import Joined
from dynext.zeroshot.synth.synthesize import synthesize

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)
SMALL = {"spec": SPEC, "method": "leaves", "n": 64, "steps": 8, "progress": False}


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
    found = convert(model, calibrate=real(), distill_on_calibration=True, **SMALL)
    assert "were not distilled on it" in found.table.rows
    assert len(found.table) == 48
    x = SPEC.normalize(real().pixels)
    final = found.net.all_exits(x)
    torch.testing.assert_close(found.table.logits_nek[:, -1], final[:, -1].detach(), rtol=1e-2, atol=1e-2)
    assert not torch.allclose(found.table.logits_nek[:, 0], final[:, 0].detach(), rtol=1e-3, atol=1e-3)


def test_rows_of_ones_own_are_used_instead_of_synthesized_ones() -> None:
    rows = real(64)
    found = convert(teacher(), distill_on=rows, calibrate=real(), **SMALL)
    assert found.rows is rows
    assert found.provenance["method"] == "given samples"


@pytest.mark.parametrize("joined", [False, True])
def test_exits_are_not_judged_on_the_bank_that_they_were_distilled_on(
    joined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thresholds, "ROWS", 64)
    bank = synthesize(teacher(), shape=SPEC.shape, n=64, seed=1, method="leaves", spec=SPEC, progress=False)
    found = convert(
        teacher(), distill_on=Joined(parts=[bank]) if joined else bank, **SMALL
    )  # judges by seed 1, if free
    assert not torch.equal(found.table.logits_nek, collect(found.net, bank).logits_nek)


@pytest.mark.parametrize("calibrated", [False, True])
def test_jointly_the_trunk_moves_and_what_it_loses_is_counted(calibrated: bool) -> None:
    model = teacher()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = {"calibrate": real(), "distill_on_calibration": True} if calibrated else {}
    found = convert(model, train="joint", joint_steps=4, **given, **SMALL)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    x = SPEC.normalize(real(8).pixels)
    assert not torch.equal(found.net(x), model(x))
    assert found.provenance["train"] == "joint"
    assert found.provenance["joint"]["steps"] == 4
    last = found.table.logits_nek[:, -1]
    if calibrated:
        torch.testing.assert_close(last, found.net(SPEC.normalize(real().pixels)).detach(), rtol=1e-2, atol=1e-2)
    assert (found.provenance["shift"] is None) == calibrated


def test_a_killed_conversion_goes_on(tmp_path: Path) -> None:
    whole = convert(teacher(), **SMALL)
    said: list[str] = []

    def dying(message: str) -> None:
        said.append(message)
        if "distilled" in message:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(teacher(), **SMALL, folder=tmp_path, notify=dying)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bank-leaves-0", "convert.json", "heads.ckpt"]
    assert same_weights(whole, convert(teacher(), **SMALL, folder=tmp_path))
    with pytest.raises(FitError, match="another run .*method was leaves, is objects"):  # not the leaves' exits again
        convert(teacher(), **{**SMALL, "method": "objects"}, folder=tmp_path)
    (tmp_path / "convert.json").write_text("[")
    with pytest.raises(SourceError, match=r"convert\.json is damaged"):
        convert(teacher(), **SMALL, folder=tmp_path)


def test_a_table_that_says_no_gives_the_static_net() -> None:
    found = convert(teacher(), calibrate=real(), max_drop=0.0, **SMALL)
    assert found.policy.threshold_e == Policy.never(found.net.num_exits).threshold_e
    assert "no exit is safe" in found.policy.note
    assert simulate(found.table, found.policy).saved == 0


def test_what_is_missing_is_said() -> None:
    with pytest.raises(SourceError, match="give an example batch or spec"):
        convert(teacher())
    with pytest.raises(SourceError, match="distill_on_calibration needs samples"):
        convert(teacher(), distill_on_calibration=True, **SMALL)
    with pytest.raises(FitError, match="with distill_on they are there, give steps"):
        convert(teacher(), distill_on=real(), minutes=5, **SMALL)
    with pytest.raises(FitError, match="train='whole'; give 'frozen'"):
        convert(teacher(), train="whole", **SMALL)
    with pytest.raises(SourceError, match="they must agree"):
        convert(teacher(), torch.zeros(1, 3, 9, 9), **SMALL)


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
    assert spec_for(None, None, None, rows) == own
    assert spec_for(torch.zeros(1, 3, 8, 8), None, None).mean == (0.5,) * 3
    with pytest.raises(
        SourceError, match=r"calibrate is normalized by mean \(0\.4, .*give the samples the net's own spec"
    ):
        convert(teacher(), calibrate=rows, **SMALL)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"distill_on": real(0), "calibrate": real()}, "distill_on has no samples"),
        ({"calibrate": real(0)}, "calibrate has no samples"),
        ({"calibrate": torch.zeros(4, 3, 8, 8)}, r"calibrate is a Tensor; give dx\.data\.Samples"),
        ({"distill_on": torch.zeros(4, 3, 8, 8)}, "distill_on is a Tensor; give a bank"),
        ({"calibrate": Samples(pixels=torch.zeros(2, 3, 9, 9), spec=replace(SPEC, shape=(3, 9, 9)))}, "resize them"),
        ({"example": torch.zeros(3, 8, 8)}, r"the example is of shape \(3, 8, 8\); give a batch"),
        ({"example": [0.0]}, "the example is a list; give a batch"),
        ({"spec": InputSpec(shape=(2,), mean=(0.0,) * 2, std=(1.0,) * 2)}, r"samples of shape \(2,\); give \(channels"),
    ],
)
def test_rows_that_cannot_be_used_are_refused_before_the_work(given: dict, told: str) -> None:
    with pytest.raises(SourceError, match=told):
        convert(teacher(), **{**SMALL, **given})


@pytest.mark.parametrize(
    ("wish", "told"),
    [({"max_drop": 5}, "give a"), ({"budget": 0.0}, "give a"), ({"budget": 0.001}, "cheapest within reach is 0")],
)
def test_wishes_that_nothing_can_meet_are_refused_before_the_work(wish: dict, told: str) -> None:
    said: list[str] = []
    with pytest.raises(PolicyError, match=told):
        convert(teacher(), **wish, **SMALL, notify=said.append)
    assert said == []


def test_views_begin_with_the_rows_themselves_and_repeat() -> None:
    rows = real(10)
    views = Views(rows=rows, count=3, seed=0)
    first, again = (torch.cat([batch.x for batch in views]) for _ in range(2))
    assert len(views) == len(first) == 30
    assert torch.equal(first, again)
    torch.testing.assert_close(first[:10], SPEC.normalize(rows.pixels))
    assert not torch.equal(first[10:20], first[:10])
    assert not torch.equal(first[20:], first[10:20])
