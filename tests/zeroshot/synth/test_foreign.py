"""Synthesizers of somebody else's: a function, an object, a registered name; what they may not give, and why."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

import dynext as dx
from dynext import plugins
from dynext.errors import SourceError
from dynext.testing import ConformanceError, check_synthesizer
from dynext.types import InputSpec
from dynext.zeroshot.synth.method import Sampler, UntrainedSampler
from dynext.zeroshot.synth.registry import METHODS


def noise(teacher: nn.Module, spec: InputSpec, seed: int, strength: float = 1.0) -> Callable[[int, Generator], Tensor]:
    """Pixels of uniform noise."""
    return lambda count, draw: spec.normalize(torch.rand(count, *spec.shape, generator=draw) * strength)


class Bright:
    """An object with more to say than its samples."""

    per_chunk, bn = 5, "running"

    def __init__(self, teacher: nn.Module, spec: InputSpec, seed: int, **options: Any) -> None:
        self.spec, self.notes = spec, {"options": sorted(options)}

    def sample(self, count: int, draw: Generator) -> Tensor:
        return self.spec.normalize(0.5 + 0.5 * torch.rand(count, *self.spec.shape, generator=draw))


class PaintedByGlobal(nn.Module):
    """A net that draws with torch's global generator, as generators found elsewhere do."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.layer, self.shape = nn.Linear(4, 1), spec.shape

    def sample(self, count: int, draw: Generator) -> Tensor:
        return torch.randn(count, *self.shape) + self.layer(torch.randn(count, 4)).view(-1, 1, 1, 1) * 0.1


def by_global(teacher: nn.Module, spec: InputSpec, seed: int) -> PaintedByGlobal:
    return PaintedByGlobal(spec)


def trained_first(teacher: nn.Module, spec: InputSpec, seed: int) -> UntrainedSampler:
    return UntrainedSampler(
        prepare=lambda work: Sampler(sample=noise(teacher, spec, seed), per_chunk=7, notes={"trained": True}),
        per_chunk=7,
    )


def inverted(teacher: nn.Module, spec: InputSpec, seed: int) -> Callable[[int, Generator], Tensor]:
    """One step up the teacher's first logit: needs gradients, and hands over samples that carry them."""

    def sample(count: int, draw: Generator) -> Tensor:
        x = torch.randn(count, *spec.shape, generator=draw, requires_grad=True)
        (slope,) = torch.autograd.grad(teacher(x)[:, 0].sum(), x)
        return x + slope

    return sample


GOOD = [noise, partial(noise, strength=0.5), Bright, by_global, trained_first, inverted]


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(plugins, "_registered", {group: {} for group in plugins.GROUPS})
        yield


@pytest.mark.parametrize("method", GOOD, ids=plugins.identity)
def test_a_callable_makes_a_bank(
    teacher: nn.Module, spec: InputSpec, method: Callable[..., Any], tmp_path: Path
) -> None:
    check_synthesizer(method, teacher, spec)
    given = {"shape": spec.shape, "n": 12, "seed": 3, "spec": spec, "method": method, "progress": False}
    bank = dx.synthesize(teacher, **given)
    assert bank.provenance.method == plugins.reference(method)
    assert bank.provenance.made_by == plugins.digest(method)
    assert plugins.reference(method) in str(dx.zeroshot.quality(bank, teacher))
    assert torch.equal(next(iter(bank)).x, next(iter(dx.synthesize(teacher, folder=tmp_path / "bank", **given))).x)


def test_a_teacher_that_cannot_be_deep_copied_is_left_alone(teacher: nn.Module, spec: InputSpec) -> None:
    model = deepcopy(teacher).train()
    model.lock = threading.Lock()
    given = {"shape": spec.shape, "n": 4, "seed": 0, "spec": spec, "progress": False}
    banks = [dx.synthesize(one, method=inverted, **given).take(torch.arange(4)).x for one in (model, teacher)]
    assert torch.equal(*banks)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_an_object_says_what_suits_its_samples(teacher: nn.Module, spec: InputSpec) -> None:
    bank = dx.synthesize(teacher, shape=spec.shape, n=12, seed=0, spec=spec, method=Bright, hue=3, progress=False)
    assert (bank.bn, bank.provenance.per_shard, bank.provenance.notes) == ("running", 5, {"options": ["hue"]})
    assert [len(shard) for shard in bank.shards] == [5, 5, 2]


def test_an_option_goes_to_the_method_and_an_unknown_one_does_not(teacher: nn.Module, spec: InputSpec) -> None:
    given = {"shape": spec.shape, "n": 4, "seed": 0, "spec": spec, "method": noise, "progress": False}
    dark = dx.synthesize(teacher, strength=0.1, **given)
    assert float(spec.pixels(dark.take(torch.arange(4)).x).max()) < 0.11
    assert dark.provenance.options == {"strength": 0.1}
    with pytest.raises(SourceError, match=r"noise has no option strenght; it has strength"):
        dx.synthesize(teacher, strenght=0.1, **given)


def test_a_killed_synthesis_goes_on_and_another_function_is_refused(
    teacher: nn.Module, spec: InputSpec, tmp_path: Path
) -> None:
    calls: list[int] = []

    def sample(count: int, draw: Generator) -> Tensor:
        calls.append(count)
        if len(calls) == 4 and not (tmp_path / "again").exists():
            raise KeyboardInterrupt
        return noise(teacher, spec, 0)(count, draw)

    class Chunky(Bright):
        def sample(self, count: int, draw: Generator) -> Tensor:
            return sample(count, draw)

    given = {"shape": spec.shape, "n": 12, "seed": 3, "spec": spec, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        dx.synthesize(teacher, method=Chunky, folder=tmp_path / "bank", **given)
    (tmp_path / "again").touch()
    resumed = dx.synthesize(teacher, method=Chunky, folder=tmp_path / "bank", **given)
    whole = dx.synthesize(teacher, method=Chunky, **given)
    assert torch.equal(resumed.take(torch.arange(12)).x, whole.take(torch.arange(12)).x)
    with pytest.raises(SourceError, match="holds another run's bank .*Chunky, is .*noise; .*made_by was code"):
        dx.synthesize(teacher, method=noise, folder=tmp_path / "bank", **given)


def test_two_functions_of_one_name_are_told_apart(teacher: nn.Module, spec: InputSpec, tmp_path: Path) -> None:
    def dimmed(strength: float) -> Callable[..., Any]:
        return lambda teacher, spec, seed: noise(teacher, spec, seed, strength)

    given = {"shape": spec.shape, "n": 4, "seed": 3, "spec": spec, "progress": False, "folder": tmp_path / "bank"}
    dx.synthesize(teacher, method=dimmed(0.5), **given)
    dx.synthesize(teacher, method=dimmed(0.5), **given)
    with pytest.raises(SourceError, match="made_by was"):
        dx.synthesize(teacher, method=dimmed(0.6), **given)


def fails(teacher: nn.Module, spec: InputSpec, seed: int) -> Any:
    raise KeyError("decoder.weight")


def sampled(make: Callable[[int, InputSpec, Generator], Any]) -> Callable[..., Any]:
    return lambda teacher, spec, seed: lambda count, draw: make(count, spec, draw)


WRONG = {
    "is called .teacher, spec, seed, ..options., and it does not take that": lambda count, generator: 1,
    "failed .KeyError: 'decoder.weight'.": fails,
    "gave a Tensor; it is to give a function sample": lambda teacher, spec, seed: torch.rand(4, *spec.shape),
    "gave a NoneType; it is to give": lambda teacher, spec, seed: None,
    "gave a Linear; it is to give": lambda teacher, spec, seed: nn.Linear(2, 2),
    r"gave a tensor \(2, 3, 4, 8\) when asked for 2": sampled(lambda count, spec, draw: torch.zeros(count, 3, 4, 8)),
    r"gave a tensor \(8, 3, 8, 8\) when asked for 2": sampled(lambda count, spec, draw: torch.zeros(8, *spec.shape)),
    "gave a tuple when asked": sampled(lambda count, spec, draw: (torch.zeros(count, *spec.shape), 1)),
    "gave torch.uint8; give normalized": sampled(
        lambda count, spec, draw: torch.randint(256, (count, *spec.shape), generator=draw, dtype=torch.uint8)
    ),
    "gave NaN or infinity": sampled(lambda count, spec, draw: torch.full((count, *spec.shape), torch.nan)),
    "from .* to .*, where pixels lie between -2 and 3": sampled(
        lambda count, spec, draw: 255 * torch.rand(count, *spec.shape, generator=draw)
    ),
    "all lie in .0, 1., like pixels": sampled(lambda count, spec, draw: torch.rand(count, *spec.shape, generator=draw)),
    "other samples for the same generator": sampled(
        lambda count, spec, draw: torch.full((count, *spec.shape), random.random())
    ),
    "failed .TypeError: ": lambda teacher, spec, seed: lambda count: torch.zeros(count, *spec.shape),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_a_method_may_not_give_is_refused_with_the_reason(teacher: nn.Module, spec: InputSpec, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        dx.synthesize(teacher, shape=spec.shape, n=4, seed=0, spec=spec, method=WRONG[said], progress=False)


def test_no_method_at_all_is_refused(teacher: nn.Module, spec: InputSpec) -> None:
    for method in (3, None, ["fitted"]):
        with pytest.raises(SourceError, match="give a name, or a function .teacher, spec, seed, ..options."):
            dx.synthesize(teacher, shape=spec.shape, n=4, seed=0, spec=spec, method=method)  # type: ignore[arg-type]


def test_the_teacher_is_a_private_copy(teacher: nn.Module, spec: InputSpec) -> None:
    def vandal(teacher: nn.Module, spec: InputSpec, seed: int) -> Callable[[int, Generator], Tensor]:
        teacher.train().requires_grad_(True)
        for p in teacher.parameters():
            p.data.zero_()
        return noise(teacher, spec, seed)

    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    check_synthesizer(vandal, teacher, spec)
    assert not teacher.training
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_the_kit_sees_what_a_bank_alone_does_not(teacher: nn.Module, spec: InputSpec) -> None:
    same = sampled(lambda count, spec, draw: torch.randn(1, *spec.shape, generator=draw).expand(count, -1, -1, -1))
    with pytest.raises(ConformanceError, match="samples of a chunk are all the same"):
        check_synthesizer(same, teacher, spec)
    fixed = sampled(lambda count, spec, draw: torch.linspace(-1, 1, count).view(-1, 1, 1, 1).expand(-1, *spec.shape))
    with pytest.raises(ConformanceError, match="another generator gives the very same"):
        check_synthesizer(fixed, teacher, spec)


def test_a_registered_name_is_one_of_the_methods(teacher: nn.Module, spec: InputSpec) -> None:
    plugins.register("dynext.synthesizers", "noise", noise)
    assert "noise" in METHODS
    assert "noise" in list(METHODS)
    given = {"shape": spec.shape, "n": 8, "seed": 0, "spec": spec, "progress": False}
    bank = dx.synthesize(teacher, method="noise", **given)
    assert (bank.provenance.method, bank.provenance.made_by) == ("noise", plugins.identity(noise))
    check_synthesizer("noise", teacher, spec)
    with pytest.raises(SourceError, match="did you mean noise"):
        dx.synthesize(teacher, method="nois", **given)
    mixed = dx.synthesize(
        teacher,
        method="mixture",
        methods=("noise", "leaves"),
        shares=(1, 1),
        parts={"noise": {"strength": 0.2}},
        **given,
    )
    assert mixed.provenance.notes["shares"] == {"noise": 0.5, "leaves": 0.5}


def test_our_own_names_are_never_given_away(teacher: nn.Module, spec: InputSpec) -> None:
    given = {"shape": spec.shape, "n": 8, "seed": 0, "spec": spec, "progress": False, "method": "leaves"}
    before = dx.synthesize(teacher, **given)
    plugins.register("dynext.synthesizers", "leaves", noise)
    after = dx.synthesize(teacher, **given)
    assert torch.equal(before.take(torch.arange(8)).x, after.take(torch.arange(8)).x)
    assert list(METHODS).count("leaves") == 1


def test_a_whole_conversion_by_a_function(teacher: nn.Module, spec: InputSpec, tmp_path: Path) -> None:
    asked = {
        "synthesis": dx.Synthesis(method=noise, n=64, options={"strength": 0.9}),
        "training": dx.Frozen(steps=4),
        "exits": dx.Exits(after=("layer1",)),
        "run": dx.Run(folder=tmp_path, progress=False),
    }
    conversion = dx.convert(teacher, spec, **asked)
    assert conversion.provenance["method"] == plugins.reference(noise)
    assert conversion.provenance["synthesis"]["method"] == plugins.identity(noise)
    with pytest.raises(dx.DynextError, match="method"):
        dx.convert(teacher, spec, **{**asked, "synthesis": dx.Synthesis(method=Bright, n=64)})


def test_a_conversion_by_minutes_times_the_function(teacher: nn.Module, spec: InputSpec) -> None:
    from dynext.zeroshot.time_budget import pace

    assert pace(teacher, spec, noise).sample > 0


def test_the_command_line_lists_an_installed_name(tmp_path: Path) -> None:
    site = tmp_path / "site"
    info = site / "glow-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: glow\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[dynext.synthesizers]\nglow = glow:glow\nbroken = nowhere:nothing\n")
    (site / "glow.py").write_text(
        "import torch\n"
        "def glow(teacher, spec, seed, strength=1.0):\n"
        "    return lambda count, draw: spec.normalize(torch.rand(count, *spec.shape, generator=draw) * strength)\n"
    )
    out, model = tmp_path / "bank", "bundled:fashion_resnet20"
    made = ["synthesize", model, "-n", "16"]
    commands = [["synthesize", "--help"], ["convert", "--help"], [*made, "--method", "glow", "--out", str(out)]]
    commands += [[*made, "--method", "broken", "--out", str(tmp_path / "other")]]
    commands[2] += ["--set", "strength=0.5"]
    code = (
        f"import json, sys; sys.path.insert(0, {str(site)!r}); from dynext.cli import main\n"
        "from click.testing import CliRunner\n"
        f"print(json.dumps([CliRunner().invoke(main, command).output for command in {commands!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    help_synthesize, help_convert, told, broken = json.loads(done.stdout.splitlines()[-1])
    assert "glow" in help_synthesize
    assert "glow" in help_convert
    assert "16 samples by glow" in told
    assert dx.Bank.open(out).provenance.made_by == "glow 1.2 (glow:glow)"
    assert "'broken' of glow 1.2 (nowhere:nothing) cannot be imported" in broken
    assert "Traceback" not in broken
