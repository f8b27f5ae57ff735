"""Export from the shell."""

import json
from pathlib import Path

import pytest
import torch
from shell import done, refused

import dynext as dx


def test_torch_programs_chain_to_the_net(net: Path, tmp_path: Path) -> None:
    text = done("export", net, "-o", tmp_path / "out", "--format", "torch")
    assert "5 programs" in text
    assert json.loads((tmp_path / "out" / "policy.json").read_text())["policy"] == dx.load(net).policy.to_dict()
    x = torch.randn(3, 3, 32, 32)
    live: tuple[torch.Tensor, ...] = (x,)
    for s in range(3):
        live = torch.export.load(tmp_path / "out" / f"stage_{s:02}.pt2").module()(*live)
    torch.testing.assert_close(live[0], dx.load(net).net(x), rtol=1e-4, atol=1e-5)


def test_onnx_comes_with_a_runner(net: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the onnx extra is not installed")
    assert "run_onnx.py" in done("export", net, "-o", tmp_path / "out")
    assert (tmp_path / "out" / "exit_01.onnx").exists()


def test_mistakes(net: Path, tmp_path: Path) -> None:
    assert "Missing option '-o'" in refused("export", net)
    assert "'tflite' is not" in refused("export", net, "-o", tmp_path / "out", "--format", "tflite")
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "today.txt").write_text("dear diary")
    assert "diary" in refused("export", net, "-o", tmp_path / "diary", "--format", "torch")
    assert (tmp_path / "diary" / "today.txt").exists()
