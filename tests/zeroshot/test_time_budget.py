"""A time budget becomes samples and steps: in proportion, within the budget, and the same again after a kill."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from zoo import NETS

from dynext.errors import SourceError
from dynext.graph.split import split
from dynext.modules.exits import default_heads
from dynext.net.attach import attach
from dynext.types import InputSpec
from dynext.zeroshot.settings import JOINT_STEPS, SAMPLES, STEPS
from dynext.zeroshot.time_budget import (
    MOST,
    RESERVE,
    SCREENED_SAMPLES,
    Pace,
    Speeds,
    Workload,
    effort_for,
    measured_speeds,
    pace,
    planned,
)

SPEEDS = Speeds(make=Pace(ready=3.0, sample=0.02), paint=0.001, forward=0.004, step=0.1)
SPEC = InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)


def test_the_plan_fills_the_budget_and_keeps_the_proportion() -> None:
    found = planned(5, SPEEDS)
    assert found.seconds == pytest.approx(RESERVE * 300)
    assert found.rows / found.steps == pytest.approx(SAMPLES / STEPS, rel=0.01)
    spent = 3.0 + found.rows * (0.02 + SPEEDS.forward) + found.steps * SPEEDS.step
    assert spent == pytest.approx(found.seconds, rel=0.01)


def test_folds_and_calibration_rows_leave_less() -> None:
    alone = planned(5, SPEEDS)
    assert planned(5, SPEEDS, Workload(trainings=3)).steps < alone.steps
    assert planned(5, SPEEDS, Workload(further=4000)).rows < alone.rows


def test_rows_for_thresholds_are_painted_and_looked_at_within_the_budget() -> None:
    found = planned(5, SPEEDS, Workload(judged=4096, judged_forwards=2.0))
    spent = 3.0 + found.rows * (0.02 + SPEEDS.forward) + found.steps * SPEEDS.step
    spent += SCREENED_SAMPLES * SPEEDS.forward + 4096 * (SPEEDS.paint + 2.0 * SPEEDS.forward)
    assert spent == pytest.approx(RESERVE * 300, rel=0.01)


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf")])
def test_minutes_are_a_positive_number(minutes: float) -> None:
    with pytest.raises(SourceError, match=r"minutes=.*; give a positive number"):
        planned(minutes, SPEEDS)


def test_the_trunk_takes_its_time() -> None:
    found = planned(5, SPEEDS, Workload(joint=True))
    assert found.steps < planned(5, SPEEDS).steps
    assert found.joint_steps / found.steps == pytest.approx(JOINT_STEPS / STEPS, rel=0.05)


def test_an_hour_for_a_small_net_is_not_used_up() -> None:
    found = planned(600, SPEEDS)
    assert (found.rows, found.steps) == (int(MOST * SAMPLES), int(MOST * STEPS))
    assert found.seconds < 600 * 60


def test_too_few_minutes_are_refused_with_how_many_it_takes() -> None:
    with pytest.raises(SourceError, match=r"0\.1 minutes are too few .* give 0\.\d+ or more") as told:
        planned(0.1, SPEEDS)
    needed = float(str(told.value).split("give ")[1].split(" or")[0])
    assert planned(needed * 1.05, SPEEDS).rows >= SAMPLES // 40


def test_a_resumed_run_keeps_its_plan(tmp_path: Path) -> None:
    model, example = NETS["residual"]()
    net = attach(split(model, example), default_heads(10))
    random_state = torch.get_rng_state()
    speeds = measured_speeds(net, model, SPEC, "inversion")
    assert min(speeds.make.ready, speeds.paint, speeds.forward, speeds.step) > 0
    assert speeds.make.sample > speeds.paint
    assert torch.equal(random_state, torch.get_rng_state())
    first = effort_for(1, net, model, SPEC, "leaves", folder=tmp_path)
    assert effort_for(30, net, model, SPEC, "leaves", folder=tmp_path) == first
    (tmp_path / "effort.json").write_text("{")
    with pytest.raises(SourceError, match="damaged .*delete it to plan anew"):
        effort_for(1, net, model, SPEC, "leaves", folder=tmp_path)


def test_a_generator_is_trained_before_its_first_row() -> None:
    model, _ = NETS["residual"]()
    found = pace(model, SPEC, "generator")
    assert found.ready > 10 * found.sample
    assert planned(5, replace(SPEEDS, make=Pace(ready=200, sample=0.02))).rows < planned(5, SPEEDS).rows


def test_samples_that_are_there_are_not_planned() -> None:
    found = planned(5, SPEEDS, Workload(given=1000))
    assert found.rows == 1000
    assert found.steps > planned(5, SPEEDS).steps
