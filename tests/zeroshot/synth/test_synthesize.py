"""Samples from a teacher alone: no data comes in, no file is opened, the same seed gives the same samples, killed or
not.
"""

import inspect
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import dynext.zeroshot.synth.synthesize as subject
from dynext.errors import SourceError
from dynext.models import ResNet
from dynext.seeding import generator
from dynext.types import InputSpec
from dynext.zeroshot.bank import Bank
from dynext.zeroshot.synth.generator_training import GeneratorSettings
from dynext.zeroshot.synth.impressions import Impressions
from dynext.zeroshot.synth.inversion import Inversion
from dynext.zeroshot.synth.registry import METHODS
from dynext.zeroshot.synth.styles import OBJECTS
from dynext.zeroshot.synth.synthesize import fingerprint, synthesize

QUICK = {
    "fitted": {"candidates": 8},
    "inversion": {"candidates": 8, "settings": Inversion(iterations=2)},
    "impressions": {"start": "leaves", "settings": Impressions(iterations=2)},
    "generator": {"settings": GeneratorSettings(steps=2, batch_size=4, width=4, latent=8, ages=2)},
    "patches": {"image": torch.rand(3, 450, 500, generator=generator(0))},
    "mixture": {"methods": ("leaves", "objects")},
}
opened: list[str] | None = None


def watch(event: str, arguments: tuple) -> None:
    if event == "open" and opened is not None and not is_plugin_search(str(arguments[0])):
        opened.append(str(arguments[0]))


def is_plugin_search(name: str) -> bool:
    """Training's loop (Fabric) asks every installed package whether it brings plug-ins: no data is among those."""
    return Path(name).name == "entry_points.txt" or (name in sys.path and name.endswith(".zip"))


sys.addaudithook(watch)  # cannot be taken back; it listens only while `opened` is a list


def make(teacher: nn.Module, n: int, method: str, shape=(3, 8, 8), seed: int = 0, **more) -> Bank:
    more = {**QUICK.get(method, {}), **more}
    return synthesize(teacher, shape=shape, n=n, seed=seed, method=method, progress=False, **more)


def everything(bank: Bank) -> torch.Tensor:
    return torch.cat([batch.x for batch in bank])


def check_range(bank: Bank) -> None:
    """Pixels lie in [0, 1] (finite numbers for noise, which is no picture), and are not all alike."""
    x = everything(bank)
    assert torch.isfinite(x).all()
    if bank.provenance.method != "gaussian":
        mean, std = (torch.tensor(figure).view(-1, 1, 1) for figure in (bank.spec.mean, bank.spec.std))
        pixels = x * std + mean
        assert -0.001 <= float(pixels.min()) <= float(pixels.max()) <= 1.001
    assert x.numel() < 20 or len(x.unique()) > 5


def test_there_is_no_data_parameter() -> None:
    parameters = list(inspect.signature(synthesize).parameters)
    assert parameters == ["teacher", "shape", "n", "seed", "method", "spec", "folder", "progress", "options"]
    assert len(METHODS) >= 10
    options = {"style", "styles", "candidates", "settings", "start", "against", "methods", "shares", "parts"}
    for name, method in METHODS.items():
        known = set(inspect.signature(method).parameters)
        # One image is all that `patches` ever sees, and it is no training sample: its user brings it along.
        allowed = options | {"image"} if name == "patches" else options
        assert {"teacher", "spec", "seed"} <= known <= {"teacher", "spec", "seed"} | allowed, name


@pytest.mark.parametrize("method", METHODS)
def test_no_file_is_opened_but_the_banks_own(teacher: nn.Module, tmp_path: Path, method: str, monkeypatch) -> None:
    make(teacher, 4, method, folder=tmp_path / "first")  # whatever is imported late is imported now
    found: list[str] = []
    monkeypatch.setattr(sys.modules[__name__], "opened", found)
    in_memory = make(teacher, 20, method)
    assert found == []
    make(teacher, 20, method, folder=tmp_path / "bank")
    monkeypatch.setattr(sys.modules[__name__], "opened", None)
    assert found
    assert [name for name in found if not name.startswith(str(tmp_path))] == []
    assert torch.equal(everything(Bank.open(tmp_path / "bank")), everything(in_memory))


@pytest.mark.parametrize("method", METHODS)
def test_seed_decides_and_nothing_else_changes(teacher: nn.Module, method: str) -> None:
    teacher.layer1.train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    modes = [module.training for module in teacher.modules()]
    random_state = torch.get_rng_state()
    first = everything(make(teacher, 20, method))
    assert torch.equal(first, everything(make(teacher, 20, method)))
    assert not torch.equal(first, everything(make(teacher, 20, method, seed=1)))
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert [module.training for module in teacher.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())
    assert not any(module._forward_pre_hooks for module in teacher.modules())
    assert len({row.numpy().tobytes() for row in first}) == 20


def test_chunks_do_not_depend_on_each_other(teacher: nn.Module) -> None:
    short, long = (everything(make(teacher, n, "leaves")) for n in (256, 700))
    assert torch.equal(long[:256], short)
    assert not torch.equal(long[256:512], short)


@pytest.mark.parametrize("method", ["leaves", "fitted", "patches", "mixture"])
def test_killed_synthesis_goes_on_to_the_same_bytes(teacher, tmp_path: Path, method: str, monkeypatch) -> None:
    whole = make(teacher, 600, method, folder=tmp_path / "whole")
    write, written = subject.write_shard, []

    def dying_write(folder: Path, number: int, x: torch.Tensor) -> None:
        if number == 1:
            raise KeyboardInterrupt
        write(folder, number, x)

    monkeypatch.setattr(subject, "write_shard", dying_write)
    with pytest.raises(KeyboardInterrupt):
        make(teacher, 600, method, folder=tmp_path / "killed")
    with pytest.raises(SourceError, match="holds 256 of 600 samples"):
        Bank.open(tmp_path / "killed")
    monkeypatch.setattr(subject, "write_shard", lambda *a: written.append(a[1]) or write(*a))
    resumed = make(teacher, 600, method, folder=tmp_path / "killed")
    assert written == [1, 2]
    assert torch.equal(everything(resumed), everything(whole))
    for shard in sorted((tmp_path / "whole").glob("*.safetensors")):
        assert shard.read_bytes() == (tmp_path / "killed" / shard.name).read_bytes()


def test_another_runs_folder_is_refused_with_what_differs(teacher: nn.Module, tmp_path: Path) -> None:
    make(teacher, 20, "leaves", folder=tmp_path)
    with pytest.raises(SourceError, match="another run's bank .method was leaves, is objects"):
        make(teacher, 20, "objects", folder=tmp_path)
    with pytest.raises(SourceError, match="seed was 0, is 1; n was 20, is 21"):
        make(teacher, 21, "leaves", seed=1, folder=tmp_path)
    with pytest.raises(SourceError, match="options was"):
        make(teacher, 20, "leaves", style=replace(OBJECTS, layout="leaves"), folder=tmp_path)
    with torch.no_grad():
        teacher.linear.bias += 1
    with pytest.raises(SourceError, match="teacher was"):
        make(teacher, 20, "leaves", folder=tmp_path)


def test_finished_folder_is_opened_not_made_again(teacher: nn.Module, tmp_path: Path) -> None:
    make(teacher, 20, "leaves", folder=tmp_path)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    make(teacher, 20, "leaves", folder=tmp_path)
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 14), (3, 224, 224)])
def test_any_size_gray_or_color(method: str, shape: tuple[int, ...]) -> None:
    net = nn.Sequential(nn.Conv2d(shape[0], 4, 3, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    bank = make(nn.Sequential(net, nn.Flatten(), nn.Linear(4, 3)).eval(), 3, method, shape=shape)
    x = everything(bank)
    assert x.shape == (3, *shape)
    check_range(bank)
    assert float(x.flatten(1).std(1).min()) > 0.005, "a flat image says nothing"


@pytest.mark.parametrize("method", [name for name in METHODS if name != "patches"])
@pytest.mark.parametrize("shape", [(1, 1, 40), (2, 40, 1), (3, 1, 1)])
def test_signals_and_single_pixels(method: str, shape: tuple[int, ...]) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    bank = make(net.eval(), 5, method, shape=shape)
    assert everything(bank).shape == (5, *shape)
    check_range(bank)


@pytest.mark.parametrize("method", METHODS)
def test_teacher_without_batch_norm(layer_norm_teacher: nn.Module, method: str) -> None:
    check_range(make(layer_norm_teacher, 6, method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["two classes", "a dead class"])
def test_teacher_with_two_classes_and_one_with_a_dead_class(method: str, kind: str) -> None:
    net = ResNet(8, num_classes=2 if kind == "two classes" else 3, width=4).eval()
    if kind == "a dead class":
        with torch.no_grad():
            net.linear.weight[1] = 0
            net.linear.bias[1] = -1e4
    rows = everything(make(net, 6, method))
    assert torch.isfinite(rows).all()
    assert float(rows.std()) > 0.02


@pytest.mark.parametrize("method", METHODS)
def test_what_a_bank_tells_is_json_and_reads_back(teacher: nn.Module, tmp_path: Path, method: str) -> None:
    bank = make(teacher, 4, method, folder=tmp_path / "bank")
    assert Bank.open(tmp_path / "bank").provenance.options == json.loads(json.dumps(bank.provenance.options))
    assert len(json.dumps(bank.provenance.options)) < 2000


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"method": "leafs"}, "no method 'leafs'; did you mean leaves"),
        ({"method": "magic"}, "no method 'magic'; methods are gaussian"),
        ({"n": 0}, "n=0; ask for at least one sample"),
        ({"shape": (8, 8)}, r"shape \(8, 8\); give one sample's"),
        ({"shape": (3, 0, 8)}, r"shape \(3, 0, 8\)"),
        ({"style": OBJECTS, "method": "gaussian"}, "method gaussian has no option style; it has none"),
        ({"stile": OBJECTS}, "method leaves has no option stile; it has style"),
        ({"spec": InputSpec(shape=(1, 8, 8), mean=(0.0,), std=(1.0,))}, "they must agree"),
    ],
)
def test_nonsense_is_refused(teacher: nn.Module, arguments: dict, told: str) -> None:
    with pytest.raises(SourceError, match=told):
        synthesize(teacher, **{"shape": (3, 8, 8), "n": 4, "seed": 0, "progress": False, **arguments})


class Named(nn.Module):
    """Answers by name, as some libraries do."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": x.flatten(1)}


@pytest.mark.parametrize(
    ("net", "told"),
    [
        (Named(), r"Named answers a dict for 4 samples; give a net that answers one tensor of logits \[b k\]"),
        (nn.Conv2d(3, 4, 3), r"Conv2d answers shape \(4, 4, 6, 6\) for 4 samples"),
        (
            nn.Conv2d(1, 4, 3),
            r"Conv2d does not take samples of shape \(3, 8, 8\) .*give the shape of one sample that it expects",
        ),
    ],
)
@pytest.mark.parametrize("method", ["fitted", "generator"])
def test_a_teacher_that_cannot_teach_is_refused(net: nn.Module, told: str, method: str) -> None:
    with pytest.raises(SourceError, match=told):
        make(net, 4, method)


@pytest.mark.parametrize("method", ["inversion", "impressions", "generator"])
def test_rows_of_a_teacher_in_half_precision_are_finite(teacher: nn.Module, method: str) -> None:
    kept = {name: tensor.clone() for name, tensor in teacher.half().state_dict().items()}
    check_range(make(teacher, 8, method))
    assert all(torch.equal(kept[name], tensor) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("given", [{"styles": 0}, {"candidates": 0}])
def test_a_fit_needs_styles(teacher: nn.Module, given: dict) -> None:
    with pytest.raises(SourceError, match="give at least one of each"):
        make(teacher, 4, "fitted", **given)


def test_fingerprint_sees_parameters_and_buffers(teacher: nn.Module) -> None:
    prints = [fingerprint(teacher)]
    with torch.no_grad():
        teacher.conv1.weight[0, 0, 0, 0] += 1e-3
        prints.append(fingerprint(teacher))
        teacher.bn1.num_batches_tracked += 1
        prints.append(fingerprint(teacher.bfloat16()))
    assert len(set(prints)) == 3
    assert all(len(p) == 12 for p in prints)
