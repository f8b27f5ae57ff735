"""Checkpoints as training leaves them: what lies around the weights, before their names and between them."""

import argparse
import collections
import copy
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from shell import run
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

from dynext import open_model
from dynext.errors import ModelError
from dynext.models.checkpoint import load_state, read_state

State = dict[str, Tensor]


def plain(seed: int = 0, classes: int = 5) -> nn.Sequential:
    torch.manual_seed(seed)
    body = nn.Sequential(
        collections.OrderedDict(
            conv1=nn.Conv2d(3, 4, 3), bn1=nn.BatchNorm2d(4), layer1=nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
        )
    )
    return nn.Sequential(
        collections.OrderedDict([*body.named_children(), ("flat", nn.Flatten()), ("fc", nn.Linear(64, classes))])
    )


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


STATE = plain(1).state_dict()
OTHER = plain(2).state_dict()
PARAMETERS = {name: value for name, value in OTHER.items() if not name.startswith("bn1.running")}

FORMS: dict[str, tuple[Any, str]] = {
    "plain": (STATE, ""),
    "timm": ({"arch": "x", "state_dict": OTHER, "state_dict_ema": STATE}, "averaged weights (state_dict_ema), not"),
    "torchvision references": (
        {"model": OTHER, "model_ema": {**prefixed("module.module.", STATE), "n_averaged": torch.tensor(3)}},
        "(model_ema), not model; took 'module.' off the names; ignored n_averaged",
    ),
    "averages of parameters alone": ({"model": STATE, "ema": PARAMETERS}, "took model, not the averaged weights (ema)"),
    "model_state": ({"model_state": STATE, "optim_state": {0: torch.ones(3)}}, ""),
    "pytorch-cifar": ({"net": prefixed("module.", STATE), "acc": 93.0, "epoch": 1}, "took 'module.' off"),
    "params": ({"params": STATE}, ""),
    "params_ema": ({"params": OTHER, "params_ema": STATE}, "averaged weights (params_ema)"),
    "a key of one's own": ({"netC": STATE, "epoch": torch.tensor(3)}, "took 'netC.' off the names; ignored epoch"),
    "nested": ({"checkpoint": {"model": {"state_dict": STATE}}, "step": 4}, "took 'checkpoint.' off the names"),
    "numbers beside": ({**STATE, "epoch": 3}, "ignored epoch"),
    "lightning": (
        {
            "state_dict": {**prefixed("model.", STATE), "criterion.weight": torch.ones(5), "val_acc.tp": torch.ones(1)},
            "hyper_parameters": argparse.Namespace(lr=0.1),
            "loops": {"fit_loop": {"state_dict": {}}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
        },
        "took 'model.' off the names; ignored criterion.weight, val_acc.tp",
    ),
    "lightning over DataParallel and compile": (prefixed("net._orig_mod.module.", STATE), "off the names"),
    "compile within": ({n.replace("layer1.", "layer1._orig_mod."): v for n, v in STATE.items()}, "'_orig_mod.' off"),
    "DataParallel within": ({n.replace("layer1.", "layer1.module."): v for n, v in STATE.items()}, "'module.' off"),
    "criterion beside plain names": ({**STATE, "criterion.weight": torch.ones(5)}, "ignored criterion.weight"),
    "thop": ({**STATE, "total_ops": torch.ones(1), "conv1.total_params": torch.ones(1)}, "ignored conv1.total_params"),
    "backbone": (prefixed("backbone.", STATE), "took 'backbone.' off"),
    "backbone and head": (
        {(f"head.{n}" if n.startswith("fc.") else f"backbone.{n}"): v for n, v in STATE.items()},
        "took 'backbone.' and 'head.' off",
    ),
    "backbone beside a projection": (
        {**prefixed("encoder.", STATE), "projector.0.weight": torch.ones(2, 2)}, "ignored projector.0.weight",
    ),
    "normalization before it": (
        {"0.mean": torch.ones(3), "0.std": torch.ones(3), **prefixed("1.", STATE)}, "took '1.' off the names; ignored",
    ),
    "ema-pytorch": (
        {**prefixed("online_model.", OTHER), **prefixed("ema_model.", STATE), "initted": torch.tensor(True)},
        "took 'ema_model.' off the names; ignored initted",
    ),
    "model beside its average": ({**prefixed("model.", OTHER), **prefixed("model_ema.", STATE)}, "'model_ema.' off"),
    "a teacher of another kind": ({**prefixed("model.", STATE), "teacher.conv.weight": torch.ones(2)}, "'model.' off"),
    "before torch 0.4.1": ({n: v for n, v in STATE.items() if not n.endswith("num_batches_tracked")}, ""),
    "half": ({n: v.half() if v.is_floating_point() else v for n, v in STATE.items()}, ""),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", "old.pt"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_nets_weights_and_says_what_it_did(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str, suffix: str
) -> None:
    content, told = FORMS[form]
    path = tmp_path / f"net{suffix}"
    torch.save(content, path, _use_new_zipfile_serialization=not suffix.startswith("old"))
    net = plain()
    caplog.clear()
    load_state(net, read_state(path), source="it")
    wanted = STATE if form != "before torch 0.4.1" else content
    assert_close({k: v for k, v in net.state_dict().items() if k in wanted}, dict(wanted), rtol=1e-3, atol=1e-3)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == bool(told)
    assert all(told in line and line.startswith("it: ") for line in lines), lines


def test_a_wrapped_net_takes_plain_names() -> None:
    net = nn.Sequential(collections.OrderedDict(model=plain()))
    load_state(net, STATE, source="it")
    assert_close(dict(net.model.state_dict()), dict(STATE))
    parallel = nn.DataParallel(plain())
    load_state(parallel, STATE, source="it")
    assert_close(dict(parallel.module.state_dict()), dict(STATE))


def test_objects_beside_the_weights_do_not_stop_them(tmp_path: Path) -> None:
    class Attributes(dict[str, Any]):
        __qualname__ = "Attributes"

    globals()["Attributes"] = Attributes  # pickle looks it up by name
    beside = {
        "args": argparse.Namespace(lr=0.1, out=pathlib.Path("a")),
        "best_acc": np.float64(93.0),
        "history": np.arange(3),
        "log": collections.defaultdict(list, loss=[1.0]),
        "hparams": Attributes(width=2),
    }
    for zipped in (True, False):
        torch.save({"state_dict": STATE, **beside}, tmp_path / "net.pt", _use_new_zipfile_serialization=zipped)
        assert_close(dict(read_state(tmp_path / "net.pt")), dict(STATE))


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: {"model": net, "epoch": 3}])
def test_a_whole_module_gives_its_weights_without_its_code(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, wrap: Callable[[nn.Module], Any]
) -> None:
    net = plain(1)
    net.register_buffer("scratch", torch.ones(2), persistent=False)
    torch.save(wrap(net), tmp_path / "net.pt")
    fresh = plain()
    load_state(fresh, read_state(tmp_path / "net.pt"), source="it")
    assert_close(dict(fresh.state_dict()), dict(STATE))
    assert "read out of a whole module" in caplog.text


def _advised(message: str) -> list[str]:
    command = shlex.split(message[message.index("python -c ") :])
    return [sys.executable, *command[1:3]]


def test_the_advice_on_a_module_of_an_old_torch_works(tmp_path: Path) -> None:
    path = tmp_path / "model_best.pth.tar"
    torch.save({"model": plain(1)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match=r"holds Python objects \(torch\.nn\.modules") as caught:
        read_state(path)
    subprocess.run(_advised(str(caught.value)), check=True, capture_output=True)
    assert_close(dict(read_state(tmp_path / "model_best_weights.pt")), dict(STATE))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_advice_on_a_script_works(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.jit.trace(plain(1).eval(), torch.zeros(1, 3, 8, 8)).save(path)
    with pytest.raises(ModelError, match="it is a TorchScript program") as caught:
        read_state(path)
    subprocess.run(_advised(str(caught.value)), check=True, capture_output=True)
    assert_close(dict(read_state(tmp_path / "net_weights.pt")), dict(STATE))


class _Calls:
    """Unpickled, it calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("function", [eval, exec, subprocess.getoutput, __import__])
def test_code_of_the_standard_library_is_refused_and_not_run(
    tmp_path: Path, function: Callable[..., Any], zipped: bool
) -> None:
    proof = tmp_path / "proof"
    hostile = _Calls(function, f"open({str(proof)!r}, 'w')")
    torch.save({"state_dict": STATE, "x": hostile}, tmp_path / "net.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match="never runs what is in a checkpoint"):
        read_state(tmp_path / "net.pt")
    assert not proof.exists()


def test_code_of_a_package_is_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "proof.npy"
    torch.save({"state_dict": STATE, "x": _Calls(np.save, str(proof), [1])}, tmp_path / "net.pt")
    assert_close(dict(read_state(tmp_path / "net.pt")), dict(STATE))
    assert not proof.exists()


def _pruned() -> nn.Module:
    net = plain(1)
    prune.l1_unstructured(net.conv1, "weight", amount=0.5)
    prune.random_unstructured(net.fc, "bias", amount=0.5)
    return net


def _normed(wrap: Callable[..., Any], **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net = plain(1)
        wrap(net.conv1, **options)
        wrap(net.fc, **options)
        with torch.no_grad():
            for name, value in net.named_parameters():
                if name.endswith(("weight_g", "original0")):
                    value.mul_(1.5)
        return net.eval()

    return make


PARTS = {
    "pruning masks": _pruned,
    "weight_norm": _normed(torch.nn.utils.weight_norm),
    "weight_norm of the whole": _normed(torch.nn.utils.weight_norm, dim=None),
    "weight_norm of another dimension": _normed(torch.nn.utils.weight_norm, dim=1),
    "parametrized weight_norm": _normed(parametrizations.weight_norm),
    "spectral_norm": _normed(torch.nn.utils.spectral_norm),
    "parametrized spectral_norm": _normed(parametrizations.spectral_norm),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("kind", PARTS)
def test_weights_kept_in_parts_are_put_together(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    made = PARTS[kind]().eval()
    net, x = plain().eval(), torch.randn(2, 3, 8, 8)
    state = {f"module.{name}": value.clone() for name, value in made.state_dict().items()}
    load_state(net, state, source="it")
    with torch.no_grad():
        assert_close(net(x), made(x))
    assert "it: put together module.conv1.weight, module.fc." in caplog.text.replace("\n", "")
    again = copy.deepcopy(PARTS[kind]()) if "parametrized" in kind else PARTS[kind]()
    load_state(again, state, source="it")
    assert_close(dict(again.state_dict()), dict(made.state_dict()))


class _Deeper(nn.Sequential):
    """The same net with a block more."""

    def __init__(self) -> None:
        super().__init__(collections.OrderedDict([*plain().named_children(), ("layer2", nn.Conv2d(4, 4, 1))]))


REFUSED: dict[str, tuple[State, str]] = {
    "other classes": (
        plain(1, classes=100).state_dict(),
        "fc.weight [100, 64] for [5, 64], fc.bias [100] for [5]); the checkpoint is for 100 classes, the model for 5",
    ),
    "a deeper net": (_Deeper().state_dict(), "2 unexpected: layer2.bias, layer2.weight"),
    "a deeper net, wrapped": (prefixed("model.", _Deeper().state_dict()), "2 unexpected: model.layer2.bias"),
    "a renamed layer": (
        {name.replace("conv1", "conv_1"): value for name, value in STATE.items()},
        "conv_1.weight (nearest: conv1.weight)",
    ),
    "no head": ({n: v for n, v in STATE.items() if not n.startswith("fc")}, "2 missing: fc.bias, fc.weight)"),
    "no statistics": ({n: v for n, v in STATE.items() if "running" not in n}, "4 missing: bn1.running_mean"),
    "student and teacher": (
        {**prefixed("student.", STATE), **prefixed("teacher.", OTHER)}, "twice, as student.* and as teacher.*",
    ),
    "8 bits": ({**STATE, "fc.weight": torch.ones(5, 64, dtype=torch.uint8)}, "fc.weight [5, 64] uint8 for [5, 64] f"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_name(case: str) -> None:
    state, told = REFUSED[case]
    net = plain()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ModelError, match=re.escape(told)) as caught:
        load_state(net, state, source="x.pt")
    assert str(caught.value).startswith("x.pt")
    assert_close(dict(net.state_dict()), dict(before))


def test_a_part_of_a_sequence_is_not_taken_for_the_whole() -> None:
    two = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ModelError, match="twice"):
        load_state(nn.Sequential(nn.Linear(2, 2)), two.state_dict(), source="x.pt")
    uneven = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 3)))
    with pytest.raises(ModelError, match=r"2 unexpected: 1\.0\.bias, 1\.0\.weight"):
        load_state(nn.Sequential(nn.Linear(2, 2)), uneven.state_dict(), source="x.pt")


def test_a_tied_tensor_that_is_kept_once_goes_to_both_names() -> None:
    net, source = plain(), plain(1)
    for one in (net, source):
        one.again = one.fc
    state = {name: value for name, value in source.state_dict().items() if not name.startswith("again.")}
    load_state(net, state, source="it")
    assert_close(dict(net.state_dict()), dict(source.state_dict()))


def test_weights_in_several_files_are_one(tmp_path: Path) -> None:
    names = sorted(STATE)
    shards = {"model-1.safetensors": names[:5], "model-2.safetensors": names[5:]}
    for shard, its in shards.items():
        save_file({name: STATE[name] for name in its}, tmp_path / shard)
    index = '{"weight_map": {' + ", ".join(f'"{n}": "{s}"' for s, its in shards.items() for n in its) + "}}"
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert_close(dict(read_state(tmp_path)), dict(STATE))
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../a.safetensors"}}')
    with pytest.raises(ModelError, match="no index of weights"):
        read_state(tmp_path / "model.safetensors.index.json")


def test_a_command_says_on_standard_error_what_was_changed(tmp_path: Path) -> None:
    made = open_model("cifar:resnet8", arguments={"width": 3, "num_classes": 7}).model.state_dict()
    content = {"state_dict": {**prefixed("model.", made), "criterion.weight": torch.ones(7)}}
    torch.save(content, tmp_path / "last.ckpt")
    opened = open_model("cifar:resnet8", checkpoint=tmp_path / "last.ckpt")
    assert opened.num_classes == 7
    assert_close(dict(opened.model.state_dict()), dict(made))
    told = run("inspect", "cifar:resnet8", "--checkpoint", tmp_path / "last.ckpt")
    assert told.exit_code == 0
    assert told.stderr.count("last.ckpt: took 'model.' off the names; ignored criterion.weight\n") == 1
