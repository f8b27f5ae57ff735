"""Exported programs chained in NumPy answer as the net does: same exits, logits to 1e-4."""

import ast
import copy
import importlib.util
import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gated_nets import LEARNED, gated_net, samples_for
from torch.testing import assert_close
from zoo import NETS

from dynext.errors import ArtifactError, DynextError, ModelError, PolicyError
from dynext.graph.split import split
from dynext.io import export as export_module
from dynext.io import run_onnx
from dynext.io.export import export
from dynext.io.run_onnx import OnnxNet, Sureness
from dynext.models import ResNet
from dynext.modules.exits import default_heads
from dynext.modules.gates import GateSpec, random_gates, static_gates
from dynext.net.attach import attach, attach_gates
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.confidence import CONFIDENCES, Confidence
from dynext.policy.policy import Policy
from dynext.seeding import seeded
from dynext.testing import halving_rule
from dynext.types import InputSpec

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="the onnx extra is not installed",
)
SPEC = InputSpec(shape=(3, 8, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def samples(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *SPEC.shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def net() -> DynamicNet:
    """Three exits, untrained, but of different answers for different samples."""
    with seeded(0):
        model = ResNet(8, num_classes=4, width=4).eval()
        net = attach(split(model, torch.zeros(1, *SPEC.shape), ["layer1", "layer2"]), default_heads(4, hidden=4)).eval()
        for exit in net.exits:
            torch.nn.init.normal_(exit.classifier.weight)
    with torch.no_grad():
        mean_ek = net.all_exits(samples(64)).mean(0)
        for exit, mean_k in zip(net.exits, mean_ek[:-1], strict=True):
            exit.classifier.bias -= mean_k
    return net.requires_grad_(False)


@pytest.fixture(scope="module")
def folder(net: DynamicNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(net, tmp_path_factory.mktemp("out") / "net", policy=Policy.never(3), spec=SPEC, class_names="abcd")


def with_policy(folder: Path, policy: Policy) -> OnnxNet:
    runner = OnnxNet(folder)
    runner.policy = policy.to_dict()
    return runner


def half_leave(net: DynamicNet, measure: str, x: torch.Tensor) -> Policy:
    """Thresholds between two samples' confidences, so that the last bit of a kernel decides nothing."""
    temperature_e = (1.3, 0.8, 1.0)
    threshold_e: list[float] = []
    step = Confidence(measure, 3)
    for e in (0, 1):
        sure_n = step.step(net.all_exits(x)[:, e] / temperature_e[e]).unique()
        threshold_e.append(float(sure_n[len(sure_n) // 2 - 1 :][:2].mean()) if len(sure_n) > 1 else 0.5)
    return Policy(confidence=measure, threshold_e=(*threshold_e, 0.0), temperature_e=temperature_e)


def check_same_answers(net: DynamicNet, runner: OnnxNet, x: torch.Tensor, policy: Policy) -> torch.Tensor:
    """Exits may differ only where a confidence sits on its threshold; here the samples do not."""
    wanted, answers = net.run(x, policy), runner.run(x.numpy())
    assert answers.exit.tolist() == wanted.exit.tolist()
    assert answers.macs.tolist() == wanted.macs.tolist()
    assert_close(torch.from_numpy(answers.logits), wanted.logits, rtol=1e-4, atol=1e-4, equal_nan=True)
    return wanted.exit


@needs_onnx
@pytest.mark.parametrize("measure", CONFIDENCES)
def test_every_confidence(net: DynamicNet, folder: Path, measure: str) -> None:
    x = samples(40)
    policy = half_leave(net, measure, x)
    left = check_same_answers(net, with_policy(folder, policy), x, policy)
    assert left.unique().numel() > 1


@needs_onnx
@pytest.mark.parametrize(
    "threshold_e", [(None, 0.4, 0.0), (0.4, None, 0.0), (None, None, 0.0), (0.0, None, 0.0), (2.0, 2.0, 0.0)]
)
def test_exits_that_are_off_cost_nothing(net: DynamicNet, folder: Path, threshold_e: tuple[float | None, ...]) -> None:
    policy = Policy(threshold_e=threshold_e, temperature_e=(1.0, 1.0, 1.0))
    check_same_answers(net, with_policy(folder, policy), samples(20), policy)


@needs_onnx
@pytest.mark.parametrize("n", [0, 1, 2, 33])
def test_any_number_of_samples(net: DynamicNet, folder: Path, n: int) -> None:
    policy = Policy(threshold_e=(0.45, 0.45, 0.0), temperature_e=(1.0, 1.0, 1.0))
    check_same_answers(net, with_policy(folder, policy), samples(n), policy)


@needs_onnx
def test_samples_and_nets_of_another_precision(net: DynamicNet, folder: Path, tmp_path: Path) -> None:
    x, policy = samples(20), half_leave(net, "margin", samples(20))
    double = copy.deepcopy(net).double()
    only = export(double, tmp_path / "double", policy=policy, spec=SPEC, formats=["onnx"])
    wanted = net.run(x, policy)
    for runner in (OnnxNet(only), with_policy(folder, policy)):
        for dtype in (np.float32, np.float64):
            answers = runner.run(x.numpy().astype(dtype))
            assert answers.exit.tolist() == wanted.exit.tolist()
            assert_close(torch.from_numpy(answers.logits), wanted.logits, rtol=1e-4, atol=1e-4)
    assert next(double.parameters()).dtype == torch.float64
    with pytest.raises(ValueError, match=r"samples are uint8; give normalized floats, normalize\(pixels\)"):
        runner.run(np.zeros((1, *SPEC.shape), np.uint8))


@needs_onnx
@pytest.mark.parametrize("measure", CONFIDENCES)
def test_samples_of_nan_go_to_the_last_exit(net: DynamicNet, folder: Path, measure: str) -> None:
    x = samples(6)
    x[2] = torch.nan
    policy = Policy(confidence=measure, threshold_e=(0.0, 0.0, 0.0), temperature_e=(1.0, 1.0, 1.0))
    left = check_same_answers(net, with_policy(folder, policy), x, policy)
    assert left.tolist() == [0, 0, 2, 0, 0, 0]


@needs_onnx
def test_several_live_tensors_cross_a_cut(tmp_path: Path) -> None:
    model, example = NETS["unet_like"]()
    staged = split(model, example, ["down1"])
    assert staged.stages[1].num_live_in > 1
    unet = attach(staged, default_heads(staged.num_classes, hidden=4)).eval().requires_grad_(False)
    shape = tuple(example.shape[1:])
    x = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))
    median = float(unet.all_exits(x)[:, 0].softmax(-1).amax(-1).sort().values[7:9].mean())
    policy = Policy(threshold_e=(median, 0.0), temperature_e=(1.0, 1.0))
    spec = InputSpec(shape=shape, mean=(0.0,) * shape[0], std=(1.0,) * shape[0])
    export(unet, tmp_path / "net", policy=policy, spec=spec, formats=["onnx"])
    left = check_same_answers(unet, OnnxNet(tmp_path / "net"), x, policy)
    assert left.bincount().tolist() == [8, 8]


@needs_onnx
@pytest.mark.parametrize("gates", [*LEARNED.values(), static_gates([0, 1, 0])], ids=[*LEARNED, "static"])
def test_gates_skip_what_the_net_skips(tmp_path: Path, gates: GateSpec) -> None:
    learned = gates["kind"] in LEARNED
    gated = gated_net(kind=gates["kind"]) if learned else attach_gates(gated_net(), gates)
    gated.requires_grad_(False)
    with seeded(0):  # confidences far enough apart for the last bits of two kernels
        torch.nn.init.normal_(gated.exits[0].classifier.weight)
    x = samples_for(gated, 24)
    shape = tuple(x.shape[1:])
    spec = InputSpec(shape=shape, mean=(0.0,) * shape[0], std=(1.0,) * shape[0])
    keep_g = halving_rule(gated, x)[0] if learned else (0.5,) * 3
    sure = gated.all_exits(x).softmax(-1).amax(-1)[:, 0].sort().values[11:13].mean()
    policy = Policy(threshold_e=(float(sure), 0.0), temperature_e=(1.0, 1.0), keep_g=keep_g)
    export(gated, tmp_path / "net", policy=policy, spec=spec, formats=["onnx"])
    runner = OnnxNet(tmp_path / "net")
    check_same_answers(gated, runner, x, policy)
    for other in (
        replace(policy, keep_g=None),
        replace(policy, keep_g=(None, keep_g[1], None)),
        replace(policy, threshold_e=(None, 0.0)),
        replace(policy, keep_g=(0.0, 0.0, 0.0)),
        replace(policy, keep_g=(1.0, 1.0, 1.0)),
    ):
        check_same_answers(gated, with_policy(tmp_path / "net", other), x, other)
    check_same_answers(gated, runner, x[:1], policy)
    check_same_answers(gated, runner, x[:0], policy)


@needs_onnx
def test_gates_by_chance_are_not_exported(tmp_path: Path) -> None:
    control = attach_gates(gated_net(), random_gates(0.5))
    spec = InputSpec(shape=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
    with pytest.raises(DynextError, match="gates that decide by chance are a control and are not exported"):
        export(control, tmp_path / "net", policy=Policy.never(2), spec=spec)
    with pytest.raises(PolicyError, match="the policy is for 2 gates, this net has 3"):
        export(gated_net(), tmp_path / "net", policy=Policy.skipping(2, 2), spec=spec)


@needs_onnx
def test_torch_programs_chain_to_the_net(net: DynamicNet, folder: Path) -> None:
    for n in (1, 5):
        live: tuple[torch.Tensor, ...] = (samples(n),)
        for s, stage in enumerate(net.staged.stages):
            live = torch.export.load(folder / f"stage_{s:02}.pt2").module()(*live)
            if s < 2:
                logits = torch.export.load(folder / f"exit_{s:02}.pt2").module()(live[stage.tap])
                assert_close(logits, net.all_exits(samples(n))[:, s])
        assert_close(live[0], net(samples(n)))


@needs_onnx
def test_the_runner_stands_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = ast.parse((folder / "run_onnx.py").read_text())
    imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    allowed = {"__future__", "collections.abc", "json", "math", "numpy", "onnxruntime", "pathlib", "sys", "typing"}
    assert imported == allowed
    pixels = np.random.default_rng(0).integers(0, 255, (3, *SPEC.shape), dtype=np.uint8)
    np.save(tmp_path / "samples.npy", pixels)
    monkeypatch.setattr(sys, "argv", ["run_onnx.py", str(tmp_path / "samples.npy")])
    runpy.run_path(str(folder / "run_onnx.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("sample 2: ")
    assert lines[2].split()[2] in "abcd"
    assert "(exit 2, " in lines[2]
    assert_close(torch.from_numpy(OnnxNet(folder).normalize(pixels)), SPEC.normalize(torch.from_numpy(pixels)))


@pytest.mark.parametrize("measure", CONFIDENCES)
def test_sureness_is_the_nets_confidence(measure: str) -> None:
    draw = torch.Generator().manual_seed(3)
    ours, theirs = Confidence(measure, 4), Sureness(measure, 4, 30)
    ids = torch.arange(30)
    for _ in range(3):
        logits = (3 * torch.randn(len(ids), 3, generator=draw)).round()
        logits[0, 1], logits[1, 0], logits[2, 2] = torch.nan, torch.inf, -torch.inf
        assert_close(
            torch.from_numpy(theirs.step(logits.numpy(), ids.numpy())).float(),
            ours.step(logits, ids).float(),
            equal_nan=True,
        )
        ids = ids[torch.rand(len(ids), generator=draw) < 0.7]
    with pytest.raises(ValueError, match="unknown confidence 'luck'"):
        Sureness("luck", 4, 30).step(np.zeros((1, 2)), np.zeros(1, int))


def test_an_export_is_replaced_only_by_a_complete_one(
    net: DynamicNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "net"
    target.mkdir()
    (target / "policy.json").write_text("{}")
    (target / "stage_09.pt2").write_text("old")
    (target / "notes.txt").write_text("mine")

    def fail(*_: object) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setitem(export_module._WRITERS, "torch", fail)
    with pytest.raises(DynextError, match=r"stage_00 \(torch\) cannot be exported: RuntimeError: disk full"):
        export(net, target, policy=Policy.never(3), spec=SPEC, formats=["torch"])
    assert (target / "stage_09.pt2").read_text() == "old"
    monkeypatch.setitem(export_module._WRITERS, "torch", lambda program, path: path.write_text("new"))
    export(net, target, policy=Policy.never(3), spec=SPEC, formats=["torch"])
    assert sorted(p.name for p in target.iterdir()) == [
        "exit_00.pt2", "exit_01.pt2", "notes.txt", "policy.json", "stage_00.pt2", "stage_01.pt2", "stage_02.pt2",
    ]  # fmt: skip
    assert json.loads((target / "policy.json").read_text())["stages"][0]["file"] == "stage_00.pt2"


def test_misfits_are_told(net: DynamicNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "net"
    with pytest.raises(PolicyError, match="the policy is for 2 exits"):
        export(net, target, policy=Policy.never(2), spec=SPEC)
    with pytest.raises(ModelError, match="3 class names for 4 classes"):
        export(net, target, policy=Policy.never(3), spec=SPEC, class_names="abc")
    with pytest.raises(DynextError, match="give a list of some of onnx, torch"):
        export(net, target, policy=Policy.never(3), spec=SPEC, formats=["tflite"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("")
    with pytest.raises(ArtifactError, match="holds a.txt and no policy.json"):
        export(net, tmp_path / "full", policy=Policy.never(3), spec=SPEC)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        DynextError, match=r"onnx and onnxscript must be installed for ONNX; pip install 'dynext\[onnx\]'"
    ):
        export(net, target, policy=Policy.never(3), spec=SPEC)
    assert not target.exists()


def test_the_runner_in_the_package_is_the_one_that_is_copied() -> None:
    assert Path(run_onnx.__file__).name == export_module.RUNNER
