"""What version 0.1 left on users' disks opens, runs and answers as it did (see tests/fixtures/README.md)."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import dynext as dx

OLD = Path(__file__).parent / "fixtures" / "v0_1"
ANSWERS = load_file(OLD / "answers.safetensors")
NETS = ("converted", "gates", "cascade", "pruned", "int8", "adapted", "meta_start")
SHAPE = (1, 16, 16)


def static_net() -> torch.nn.Module:
    return dx.open_model(
        "cifar:resnet8",
        checkpoint=OLD / "static.safetensors",
        shape=SHAPE,
        mean=(0.5,),
        std=(0.5,),
        arguments={"width": 4, "channels": 1, "num_classes": 10},
    ).model


def test_each_kind_is_there() -> None:
    assert {path.name for path in OLD.iterdir() if path.is_dir()} == {*NETS, "bank", "exported", "checkpoint"}
    assert sum(path.stat().st_size for path in OLD.rglob("*")) < 1_000_000


@pytest.mark.parametrize("name", NETS)
def test_a_saved_net_answers_as_it_did(name: str, tmp_path: Path) -> None:
    kept = dx.load(OLD / name)
    tolerance = 1e-2 if name == "int8" else 1e-5  # 8-bit kernels differ from processor to processor
    with torch.inference_mode():
        found = kept.net.run(ANSWERS["x"], kept.policy)
        every_bek = kept.net.all_exits(ANSWERS["x"])
    assert_close(every_bek, ANSWERS[f"{name}.all"], atol=tolerance, rtol=tolerance)
    assert_close(found.exit, ANSWERS[f"{name}.exit"])
    assert_close(found.macs, ANSWERS[f"{name}.macs"])
    assert_close(found.logits, ANSWERS[f"{name}.logits"], atol=tolerance, rtol=tolerance)
    again = dx.save(
        kept.net, tmp_path / name, policy=kept.policy, spec=kept.spec, model_recipe=kept.model_recipe, table=kept.table
    )
    with torch.inference_mode():
        assert torch.equal(dx.load(again).net.all_exits(ANSWERS["x"]), every_bek)


@pytest.mark.parametrize("name", ["converted", "gates", "pruned"])
def test_a_saved_table_is_chosen_on_as_before(name: str) -> None:
    kept = dx.load(OLD / name)
    assert kept.table is not None
    told = dx.report(kept.table, kept.policy)
    assert 0 < told.saved < 1 or name != "gates"  # there heads cost more than they save
    assert dx.choose(kept.table, budget=2.0, rule="plain").num_exits == kept.net.num_exits


def test_the_gated_net_skips() -> None:
    assert len(ANSWERS["gates.macs"].unique()) > 2


def test_a_bank_holds_the_rows_it_held() -> None:
    bank = dx.Bank.open(OLD / "bank")
    assert (len(bank), bank.shape, bank.provenance.method) == (96, SHAPE, "leaves")
    assert torch.equal(bank.take(torch.arange(8)).x, ANSWERS["bank.rows"])


def test_an_exported_folder_runs_alone() -> None:
    pytest.importorskip("onnxruntime")
    spec = importlib.util.spec_from_file_location("run_onnx_of_0_1", OLD / "exported" / "run_onnx.py")
    assert spec is not None
    assert spec.loader is not None
    runner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    found = runner.OnnxNet(OLD / "exported").run(ANSWERS["x"].numpy())
    assert found.exit.tolist() == ANSWERS["exported.exit"].tolist()
    assert_close(torch.from_numpy(found.logits), ANSWERS["exported.logits"], atol=1e-4, rtol=1e-4)


def test_an_interrupted_distillation_goes_on(tmp_path: Path) -> None:
    shutil.copytree(OLD / "checkpoint", tmp_path, dirs_exist_ok=True)
    teacher = static_net()
    net = dx.attach(dx.split(teacher, torch.zeros(1, *SHAPE), after=["layer1"]), dx.heads.pooled_heads(10), seed=0)
    bank = dx.Bank.open(OLD / "bank")
    found = dx.distill(
        net, teacher, bank, steps=20, seed=1, checkpoint=tmp_path / "distill.ckpt", progress=False
    ).exits.state_dict()
    for name, tensor in load_file(tmp_path / "distilled.safetensors").items():
        assert_close(found[name.removeprefix("distilled.")], tensor, atol=1e-6, rtol=1e-5)


def test_an_interrupted_fit_goes_on(tmp_path: Path) -> None:
    shutil.copytree(OLD / "checkpoint", tmp_path, dirs_exist_ok=True)
    torch.manual_seed(0)
    linear = torch.nn.Linear(4, 2)

    def step(module: torch.nn.Module, draw: torch.Generator, done: float) -> torch.Tensor:
        x = torch.randn(8, 4, generator=draw)
        return (module(x) - x[:, :2]).square().mean()

    config = dx.FitConfig(steps=20, seed=5, label="mine", progress=False, checkpoint=tmp_path / "fit.ckpt")
    result = dx.fit(linear, step, config)
    assert result.resumed_at == 11
    assert_close(dict(linear.named_parameters()), load_file(OLD / "checkpoint" / "fit.safetensors"))
