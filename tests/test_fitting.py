"""The training loop: it learns, it can be killed, it says what is wrong."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dynext.errors import FitError
from dynext.fitting import FitConfig, FitOptions, configured, fit, rate_at


class Killed(Exception):
    pass


def problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(64, 3, generator=draw)
    net = nn.Linear(3, 1)
    with torch.no_grad():
        net.weight.zero_()
        net.bias.zero_()
    return net, x, x @ torch.tensor([[1.0], [-2.0], [0.5]])


def step_of(x: torch.Tensor, y: torch.Tensor, die_at: float | None = None):
    def step(module: nn.Module, draw: torch.Generator, done: float) -> torch.Tensor:
        if die_at is not None and done >= die_at:
            raise Killed
        index = torch.randint(len(x), (8,), generator=draw)
        return (module(x[index]) - y[index]).square().mean()

    return step


CONFIG = FitConfig(steps=60, lr=0.05, progress=False)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_it_learns_and_repeats_itself(optimizer: str) -> None:
    config = replace(CONFIG, optimizer=optimizer)
    net, x, y = problem()
    losses = fit(net, step_of(x, y), config).losses
    assert losses[-1] < 0.2 * losses[0]
    again, _, _ = problem()
    assert fit(again, step_of(x, y), config).losses == losses
    assert torch.equal(net.weight, again.weight)


def test_a_killed_run_ends_where_an_unbroken_one_ends(tmp_path: Path) -> None:
    whole, x, y = problem()
    fit(whole, step_of(x, y), CONFIG)
    config = replace(CONFIG, checkpoint=tmp_path / "run.ckpt", checkpoint_seconds=0)
    broken, _, _ = problem()
    with pytest.raises(Killed):
        fit(broken, step_of(x, y, die_at=0.5), config)
    resumed, _, _ = problem()
    result = fit(resumed, step_of(x, y), config)
    assert result.resumed_at == 30
    assert torch.equal(whole.weight, resumed.weight)
    finished, _, _ = problem()
    assert fit(finished, step_of(x, y), config).losses == []
    assert torch.equal(whole.weight, finished.weight)
    assert [p.name for p in tmp_path.iterdir()] == ["run.ckpt"]


def test_parts_of_a_module_get_their_share_of_the_rate_asked_anew_each_step() -> None:
    slow, x, y = problem()
    net = nn.ModuleDict({"slow": slow, "fast": problem()[0]})
    share, weights = {"slow": 0.5, "fast": 1.0}, []

    def step(module: nn.Module, draw: torch.Generator, done: float) -> torch.Tensor:
        weights.append(slow.weight.detach().clone())
        if done >= 0.5:
            share["slow"] = 0.0
        return sum((part(x) - y).square().mean() for part in module.values())

    config = replace(CONFIG, steps=4, schedule="constant", optimizer="sgd", momentum=0.0)
    fit(net, step, config, share=lambda part: share[part])
    torch.testing.assert_close(weights[1], problem_step(x, y, 0.5 * CONFIG.lr))
    assert not torch.equal(weights[2], weights[3])
    assert torch.equal(slow.weight, weights[3])
    assert not torch.equal(net["fast"].weight, slow.weight)


def problem_step(x: torch.Tensor, y: torch.Tensor, lr: float) -> torch.Tensor:
    """One step of plain descent from zero, by hand."""
    return 2 * lr * (y * x).mean(0, keepdim=True)


def test_the_callers_random_state_is_left_alone() -> None:
    net, x, y = problem()
    before = torch.get_rng_state()
    fit(net, step_of(x, y), CONFIG)
    assert torch.equal(before, torch.get_rng_state())


def test_schedules() -> None:
    onecycle = replace(CONFIG, steps=100, schedule="onecycle", warmup=0.2)
    assert rate_at(onecycle, 0) < 0.1
    assert rate_at(onecycle, 20) == pytest.approx(1)
    assert rate_at(onecycle, 99) < 0.01
    falling = replace(CONFIG, steps=100, schedule="milestones", milestones=(0.5, 0.75))
    assert [rate_at(falling, t) for t in (0, 50, 75)] == pytest.approx([1, 0.1, 0.01])
    assert rate_at(replace(CONFIG, schedule="cosine", steps=100), 50) == pytest.approx(0.5)


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    net, x, y = problem()
    with pytest.raises(FitError, match=r"loss is nan at step 0; lower lr"):
        fit(net, step_of(x * torch.nan, y), CONFIG)
    with pytest.raises(FitError, match="no parameter of the module requires a gradient"):
        fit(problem()[0].requires_grad_(False), step_of(x, y), CONFIG)
    with pytest.raises(FitError, match="steps=-1"):
        FitConfig(steps=-1)
    with pytest.raises(FitError, match=r"lr=0, trunk_lr=None; the first must be positive, the second not negative"):
        FitConfig(lr=0)
    with pytest.raises(FitError, match=r"lr=0.001, trunk_lr=-1; the first must be positive, the second not negative"):
        FitConfig(trunk_lr=-1)
    with pytest.raises(FitError, match="batch_size=-1; give at least one sample"):
        FitConfig(batch_size=-1)
    with pytest.raises(FitError, match="schedule='cosin'; give one of constant, cosine"):
        FitConfig(steps=1, schedule="cosin")
    with pytest.raises(FitError, match="optimizer='lamb'; give one of adam, adamw, sgd"):
        FitConfig(steps=1, optimizer="lamb")
    assert FitConfig(steps=1, checkpoint="run.ckpt").checkpoint == Path("run.ckpt")
    config = replace(CONFIG, checkpoint=tmp_path / "run.ckpt")
    fit(problem()[0], step_of(x, y), config)
    with pytest.raises(FitError, match=r"another run \(lr was 0.05, is 0.1\)"):
        fit(problem()[0], step_of(x, y), replace(config, lr=0.1))
    with pytest.raises(FitError, match=r"another run \(weight_decay was 0.0, is 0.5\)"):
        fit(problem()[0], step_of(x, y), replace(config, weight_decay=0.5))
    with pytest.raises(FitError, match=r"run.ckpt belongs to another net \(.*size mismatch for weight"):
        fit(nn.Linear(3, 2), step_of(x, y), config)
    config.checkpoint.write_bytes(b"not a checkpoint")
    with pytest.raises(FitError, match="is not a training checkpoint"):
        fit(problem()[0], step_of(x, y), config)


def test_options_replace_fields_of_the_config_given_or_of_the_usual_one() -> None:
    usual, given = FitConfig(steps=7, lr=0.1), FitConfig(steps=8, batch_size=2)
    assert configured(usual, None, {}) == usual
    assert configured(usual, given, {}) == given
    assert configured(usual, None, {"seed": 3, "steps": 2}) == replace(usual, seed=3, steps=2)
    assert configured(usual, given, {"lr": 0.2}) == replace(given, lr=0.2)
    assert configured(usual, {"steps": 2}, {"seed": 3}) == replace(usual, seed=3, steps=2)
    assert configured(usual, None, {"checkpoint": "run.ckpt"}).checkpoint == Path("run.ckpt")
    with pytest.raises(FitError, match=r"there is no option stepps; did you mean steps=\?"):
        configured(usual, None, {"stepps": 1})
    with pytest.raises(FitError, match="there is no option label; there are steps, lr, trunk_lr, batch_size"):
        configured(usual, None, {"label": "mine"})


def test_every_field_of_a_config_is_an_option_but_those_that_name_the_run() -> None:
    assert {*FitOptions.__annotations__, "label", "about"} == {field.name for field in fields(FitConfig)}


def test_precision_holds_for_what_a_step_computes_beside_the_module() -> None:
    dtypes: list[torch.dtype] = []

    def step(module: nn.Module, draw: torch.Generator, done: float) -> torch.Tensor:
        product = x @ next(module.parameters()).T
        dtypes.append(product.dtype)
        return (product.float() - y).square().mean()

    net, x, y = problem()
    losses = fit(net, step, replace(CONFIG, steps=30, precision="bf16-mixed")).losses
    assert set(dtypes) == {torch.bfloat16}
    assert losses[-1] < losses[0]
    assert net.weight.dtype == torch.float32
    with pytest.raises(FitError, match=r"precision='bf16'; give one of 32-true, bf16-mixed"):
        replace(CONFIG, precision="bf16")


@pytest.mark.parametrize("name", ["tpu", "abacus", *([] if torch.cuda.is_available() else ["cuda"])])
def test_an_accelerator_that_is_not_there(name: str) -> None:
    net, x, y = problem()
    with pytest.raises(FitError, match=rf"accelerator='{name}' cannot be used here .*; give 'cpu'"):
        fit(net, step_of(x, y), replace(CONFIG, accelerator=name))
