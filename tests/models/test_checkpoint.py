"""Somebody's weights: wrappers and prefixes come off, code is never run, misfits are told."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.testing import assert_close

from dynext.errors import ModelError
from dynext.models.checkpoint import load_state, read_state
from dynext.models.resnet import ResNet


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


def weights() -> dict[str, Tensor]:
    return {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".ckpt", ".pth.tar", ".bin", "", ".safetensors", ".sft"])
def test_every_kind_of_file_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    save_file(weights(), path) if suffix.startswith(".s") else torch.save(weights(), path)
    assert_close(read_state(path), weights())


@pytest.mark.parametrize(
    "wrapped",
    [
        {"state_dict": weights(), "epoch": 3},
        {"model": weights(), "optimizer": {}},
        {"model": {"state_dict": weights()}, "step": 1},
        {"model_state_dict": weights()},
    ],
)
def test_wrappers_come_off(tmp_path: Path, wrapped: dict[str, Any]) -> None:
    torch.save(wrapped, tmp_path / "net.pt")
    assert_close(read_state(tmp_path / "net.pt"), weights())


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    for suffix in (".pt", ".pth", ".th"):
        path = tmp_path / f"hostile{suffix}"
        torch.save({"state_dict": {**weights(), "x": Trap(proof)}}, path)
        with pytest.raises(ModelError, match="never runs what is in a checkpoint"):
            read_state(path)
    assert not proof.exists()


@pytest.mark.parametrize("suffix", [".pt", ".th", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "half", "noise"])
def test_damaged_files_are_refused(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"net{suffix}"
    save_file(weights(), path) if suffix == ".safetensors" else torch.save(weights(), path)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "noise": bytes(range(256)) * 4}[damage])
    with pytest.raises(ModelError, match=r"damaged|cannot be read"):
        read_state(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([1, 2], "a list, not tensors by name"),
        ({}, "holds nothing"),
        ({"epoch": 3, "loss": 0.5}, "the keys epoch, loss"),
        ({"optimizer": {"momentum": torch.ones(2)}, "epoch": 3}, "the keys optimizer, epoch"),
    ],
)
def test_what_is_no_state_dict_is_told(tmp_path: Path, content: Any, told: str) -> None:
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(ModelError, match=told):
        read_state(tmp_path / "net.pt")


def test_missing_and_foreign_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no checkpoint"):
        read_state(tmp_path / "net.pt")
    (tmp_path / "net.onnx").write_bytes(b"\x08\x07\x12\x07pytorch" * 9)
    with pytest.raises(ModelError, match="damaged or no checkpoint of torch's"):
        read_state(tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=r"it holds no model\.safetensors"):
        read_state(tmp_path)


def test_weights_that_are_not_finite_are_refused_unless_the_nets_own_are_not() -> None:
    net = nn.Linear(3, 2)
    net.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    state = {name: value.clone() for name, value in net.state_dict().items()}
    load_state(net, state, source="x.pt")
    with pytest.raises(ModelError, match=r"x\.pt holds NaN or infinite weights \(weight\)"):
        load_state(net, {**state, "weight": torch.full((2, 3), torch.nan)}, source="x.pt")


def test_misfits_are_listed_and_change_nothing() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        load_state(
            net, {"0.weight": torch.zeros(7, 3), "0.bias": torch.zeros(2), "stray": torch.zeros(1)}, source="x.pt"
        )
    assert str(caught.value) == (
        "x.pt does not fit the model (6 missing: 1.bias, 1.weight, 2.bias, 2.weight and 2 more; 1 unexpected: stray; "
        "1 of another shape: 0.weight [7, 3] for [2, 3]); check depth, width and number of classes (num_classes)"
    )
    assert_close(dict(net.state_dict()), before)


def test_counters_of_batches_may_be_absent() -> None:
    state = {k: v for k, v in ResNet(8, width=4).state_dict().items() if not k.endswith("num_batches_tracked")}
    net = ResNet(8, width=4)
    load_state(net, state, source="old")
    assert_close(net.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])
