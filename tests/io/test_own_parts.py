"""Nets with heads and gates of a user's own, saved, loaded, exported: a folder holds no code and says what it needs."""

from __future__ import annotations

import functools
import json
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from own_heads import GATES, HEADS, Averaged, Gate, Remembering, Scaled
from torch import Tensor, nn
from zoo import NETS

import dynext as dx
from dynext import plugins
from dynext.cli import main
from dynext.meta.new_classes import with_classes
from dynext.net.attach import from_specs
from dynext.net.cascade import cascade
from dynext.seeding import generator
from dynext.testing import ConformanceError, check_gates, check_net

MODEL, EXAMPLE = NETS["residual"]()
STAGED = dx.split(MODEL, EXAMPLE)
BLOCKS = dx.split(MODEL, EXAMPLE, granularity="block")
SPEC = dx.InputSpec(shape=tuple(EXAMPLE.shape[1:]), mean=(0.5,) * 3, std=(0.25,) * 3)
X = torch.randn(8, *SPEC.shape, generator=generator(0))


def saved(net: dx.DynamicNet, folder: Path) -> Path:
    policy = dx.Policy.skipping(net.num_exits, net.num_gates) if net.num_gates else dx.Policy.never(net.num_exits)
    return dx.save(net, folder, policy=policy, spec=SPEC)


@pytest.fixture(autouse=True)
def _uncounted() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch counts no MACs")
        yield


@pytest.mark.parametrize("kind", HEADS)
def test_heads_come_back_exactly(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net = dx.attach(STAGED, HEADS[kind], seed=3)
    with caplog.at_level(logging.WARNING, "dynext"):
        saved(net, tmp_path / "net")
    assert f"heads={kind}) after `from own_heads import {kind}`" in caplog.text
    assert f"--heads own_heads:{kind}" in caplog.text
    with pytest.raises(dx.errors.ArtifactError, match=rf"are of one's own \({kind}\).*holds no code.*heads={kind}"):
        dx.load(tmp_path / "net", model=MODEL)
    for heads in (HEADS[kind], f"own_heads:{kind}", lambda tap: HEADS[kind](tap, 10)):
        back = dx.load(tmp_path / "net", model=MODEL, heads=heads).net
        assert torch.equal(back.all_exits(X), net.all_exits(X))
        assert back.head_macs_e == net.head_macs_e
    check_net(back, X)


@pytest.mark.parametrize("kind", GATES)
def test_gates_come_back_exactly(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net = dx.attach_gates(dx.attach(BLOCKS, dx.default_heads(10)), GATES[kind], seed=3)
    check_gates(net, X)
    assert net.gates is not None
    assert net.gates.start_macs + sum(net.gates.macs_g) > 0
    with caplog.at_level(logging.WARNING, "dynext"):
        saved(net, tmp_path / "net")
    assert f"--gates own_heads:{kind}" in caplog.text
    with pytest.raises(dx.errors.ArtifactError, match=rf"gates are of one's own \({kind}\)"):
        dx.load(tmp_path / "net", model=MODEL)
    back = dx.load(tmp_path / "net", model=MODEL, gates=GATES[kind]).net
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), net.state_dict().values(), strict=True))
    policy = dx.Policy.skipping(net.num_exits, net.num_gates)
    assert torch.equal(back.run(X, policy).macs, net.run(X, policy).macs)


def test_arguments_of_a_factory_are_kept(tmp_path: Path) -> None:
    net = dx.attach(STAGED, functools.partial(Averaged, width=5))
    assert net.exits[0].spec["options"] == {"width": 5}
    saved(net, tmp_path / "net")
    assert torch.equal(dx.load(tmp_path / "net", model=MODEL, heads=Averaged).net.all_exits(X), net.all_exits(X))


def test_modules_lambdas_and_some_of_ours_beside_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    taps = [tuple(stage.live_shapes[stage.tap]) for stage in STAGED.stages[:-1]]
    given = [dx.default_heads(10), *(Averaged(tap, 10) for tap in taps[1:])]
    net = dx.attach(STAGED, given)
    with caplog.at_level(logging.WARNING, "dynext"):
        saved(net, tmp_path / "net")
    assert "heads=...) with what dx.attach was given" in caplog.text
    for heads in (given, given[1:], Averaged):
        assert torch.equal(dx.load(tmp_path / "net", model=MODEL, heads=heads).net.all_exits(X), net.all_exits(X))
    with pytest.raises(dx.errors.ArtifactError, match=r"1 heads for 3 exits"):
        dx.load(tmp_path / "net", model=MODEL, heads=given[:1])


def test_other_heads_are_told_apart(tmp_path: Path) -> None:
    saved(dx.attach(STAGED, Averaged), tmp_path / "net")
    with pytest.raises(dx.errors.ArtifactError, match="heads= does not give the heads"):
        dx.load(tmp_path / "net", model=MODEL, heads=functools.partial(Averaged, width=9))
    with pytest.raises(dx.errors.ArtifactError, match="heads= gives one of dynext's"):
        dx.load(tmp_path / "net", model=MODEL, heads=dx.default_heads(10))

    class Sharp(Averaged):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).tanh().mean((2, 3)))

    with pytest.raises(dx.errors.ArtifactError, match="has the saved weights, but answers otherwise"):
        dx.load(tmp_path / "net", model=MODEL, heads=Sharp)
    saved(dx.attach(STAGED, dx.default_heads(10)), tmp_path / "ours")
    with pytest.raises(dx.errors.ArtifactError, match="leave heads= out"):
        dx.load(tmp_path / "ours", model=MODEL, heads=Averaged)


def test_what_could_never_be_read_is_refused(tmp_path: Path) -> None:
    net = dx.attach(STAGED, dx.default_heads(10))

    class Sixth(dx.heads.Exit):
        pass

    specs, places = [exit.spec for exit in net.exits], [exit.after for exit in net.exits]
    odd = from_specs(net.staged, specs, places)
    odd.exits[0] = Sixth(specs[0], after=0, name="first")
    with pytest.raises(
        dx.errors.ArtifactError, match=r"is a Sixth, which load could not build.*dx.attach\(staged, Sixth"
    ):
        saved(odd, tmp_path / "net")

    class Noted(Averaged):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            return

    with pytest.raises(dx.errors.ArtifactError, match=r"_extra_state is a dict, and a folder holds tensors only"):
        saved(dx.attach(STAGED, Noted), tmp_path / "net")
    widths = iter(range(5, 40))
    with pytest.raises(dx.errors.ArtifactError, match="no longer gives one of its sizes"):
        saved(dx.attach(STAGED, lambda tap: Averaged(tap, 10, next(widths))), tmp_path / "net")

    def by_chance(tap: tuple[int, ...]) -> nn.Module:
        head, factor = Averaged(tap, 10), next(widths)
        head.register_forward_hook(lambda module, given, answer: answer * factor)
        return head

    with pytest.raises(dx.errors.ArtifactError, match="holds something beside parameters and buffers"):
        saved(dx.attach(STAGED, by_chance), tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_registered_parts_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "site" / "theirs-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[dynext.heads]\ntheirs = own_heads:Averaged\n[dynext.gates]\ntheirs = own_heads:Remembering\n"
    )
    monkeypatch.syspath_prepend(info.parent)
    net = dx.attach_gates(dx.attach(BLOCKS, "theirs"), "theirs")
    saved(net, tmp_path / "net")
    back = dx.load(tmp_path / "net", model=MODEL).net
    assert torch.equal(back.all_exits(X), net.all_exits(X))
    with pytest.raises(dx.errors.SplitError, match=r"'thiers'; did you mean 'theirs'\? known are default, .*theirs"):
        dx.attach(BLOCKS, "thiers")
    monkeypatch.undo()
    with pytest.raises(dx.errors.ArtifactError, match=r"one's own \(Averaged\)"):
        dx.load(tmp_path / "net", model=MODEL)


def test_parts_registered_in_this_process_are_found_here_and_asked_for_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plugins, "_registered", {group: {} for group in plugins.GROUPS})
    dx.plugins.register("dynext.heads", "mine", Averaged)
    dx.plugins.register("dynext.gates", "mine", Remembering)
    net = dx.attach_gates(dx.attach(BLOCKS, "mine"), "mine")
    with caplog.at_level("WARNING", logger="dynext"):
        saved(net, tmp_path / "net")
    assert "register('dynext.heads', 'mine', ...) and dx.plugins.register('dynext.gates', 'mine', ...)" in caplog.text
    assert torch.equal(dx.load(tmp_path / "net", model=MODEL).net.all_exits(X), net.all_exits(X))
    plugins._registered["dynext.heads"].clear()
    plugins._registered["dynext.gates"].clear()
    with pytest.raises(dx.errors.ArtifactError, match=r"one's own \(Averaged\)"):
        dx.load(tmp_path / "net", model=MODEL)
    again = dx.load(tmp_path / "net", model=MODEL, heads=Averaged, gates=Remembering).net
    assert torch.equal(again.all_exits(X), net.all_exits(X))


@pytest.mark.parametrize("kind", HEADS)
def test_every_verb_takes_such_a_net_or_says_why_not(kind: str) -> None:
    net = dx.attach(STAGED, HEADS[kind])
    whole = not net.exits[0].embeds
    samples = dx.data.Samples(pixels=X.sigmoid(), spec=SPEC, y=torch.arange(8) % 2)
    verbs = {
        "new classes": lambda: with_classes(net, 3),
        "class means": lambda: dx.align.few_shot(net, samples),
        "a cascade that hands embeddings on": lambda: cascade(net, "inline"),
    }
    for name, verb in verbs.items():
        if whole:
            with pytest.raises(dx.DynextError, match=r"nn\.Linear"):
                verb()
        else:
            assert verb() is not None, name
    assert cascade(net, "stack").num_exits == net.num_exits
    with pytest.raises(dx.errors.FitError, match=rf"\({kind}\) is a module of one's own, into which no mask is put"):
        dx.prune.lend_attention(net)
    small = dx.prune.quantize(net, samples, least_macs=1)
    assert torch.isfinite(small.all_exits(X)).all()


def test_new_classes_and_cosines_are_saved(tmp_path: Path) -> None:
    net = dx.attach(STAGED, Averaged)
    other = with_classes(net, 3)
    assert torch.equal(other.exits[0].embed(net.taps(X)[0][0]), net.exits[0].embed(net.taps(X)[0][0]))
    samples = dx.data.Samples(pixels=X.sigmoid(), spec=SPEC, y=torch.arange(8) % 2)
    few = dx.align.few_shot(net, samples)
    few = getattr(few, "net", few)
    for i, one in enumerate((other, few, cascade(net, "inline"))):
        saved(one, tmp_path / f"{i}")
        back = dx.load(tmp_path / f"{i}", model=MODEL, heads=Averaged).net
        assert torch.equal(back.all_exits(X), one.all_exits(X))


def test_pruned_trunks_keep_such_heads(tmp_path: Path) -> None:
    net = dx.attach(STAGED, Averaged)
    fewer = dx.prune.apply_plan(net, dx.prune.PruningPlan(exits=(net.exit_names[0],)))
    thinner = dx.prune.apply_plan(net, dx.prune.rank(net, budget=0.6))
    assert [exit.spec["tap"] for exit in thinner.exits] != [exit.spec["tap"] for exit in net.exits]
    for i, smaller in enumerate((fewer, thinner, with_classes(thinner, 3))):
        check_net(smaller, X)
        saved(smaller, tmp_path / f"{i}")
        back = dx.load(tmp_path / f"{i}", model=MODEL, heads=Averaged).net
        assert torch.equal(back.all_exits(X), smaller.all_exits(X))


def test_exported(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from dynext.io.run_onnx import OnnxNet

    net = dx.attach(BLOCKS, [Averaged, Scaled], at=[0, 2])
    net = dx.attach_gates(net, Remembering, at=BLOCKS.skippable[:2])
    policy = dx.Policy.skipping(net.num_exits, net.num_gates)
    dx.export(net, tmp_path / "out", policy=policy, spec=SPEC, formats=["onnx"])
    answer = OnnxNet(tmp_path / "out").run(X.numpy())
    np.testing.assert_allclose(answer.logits, net.run(X, policy).logits.numpy(), atol=1e-4)

    class Begun(Remembering):
        def begin(self, x: Tensor) -> tuple[Tensor, ...]:
            return (x.mean((1, 2, 3))[:, None].repeat(1, 4),)

    with pytest.raises(dx.DynextError, match="that begin as zeros"):
        dx.export(dx.attach_gates(net, Begun, at=BLOCKS.skippable[:2]), tmp_path / "out", policy=policy, spec=SPEC)


@pytest.mark.filterwarnings("ignore")  # what torch's own compiler says of itself
@torch.no_grad()
def test_compiled() -> None:
    net = dx.attach(BLOCKS, [Averaged, Scaled], at=[0, 2])
    taps, _ = net.taps(X)
    for e, exit in enumerate(net.exits):
        head = torch.compile(exit, backend="eager", fullgraph=True)
        torch.testing.assert_close(head(taps[e]), net.all_exits(X)[:, e])
    compiled = torch.compile(lambda x: net.all_exits(x), backend="eager")
    torch.testing.assert_close(compiled(X), net.all_exits(X))


class Flat(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.Flatten(), nn.LazyLinear(width))


GATE_GUESSES = {
    "uncalled": (dx.gates.recurrent_gates, "recurrent_gates is to be called first*dx.gates.recurrent_gates()"),
    "one for all": (Gate((8, 8, 8)), "one Gate for*lambda tap: MyGate"),
    "a number": (3, "gates of type int*dx.gates.recurrent_gates()"),
    "None": (lambda tap: None, "returns nothing"),
    "too wide": (lambda tap: Flat(2), "give [3, 2] before gated stage 0*nn.Linear(d, 1)"),
    "of the batch": (lambda tap: nn.Sequential(Batch(), Flat(1)), "alone otherwise than in a batch"),
    "no ask": (lambda taps: nn.Linear(1, 1), "has no begin(x) and ask(g, tap, memory)"),
}  # fmt: skip


class Batch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


@pytest.mark.parametrize("guess", GATE_GUESSES)
def test_wrong_gates_get_the_right_line(guess: str) -> None:
    given, told = GATE_GUESSES[guess]
    with pytest.raises(dx.errors.SplitError, match=".*".join(map(re.escape, told.split("*")))):
        dx.attach_gates(BLOCKS, given)


def test_gates_that_keep_something_on_the_module_are_caught() -> None:
    net = dx.attach_gates(dx.attach(BLOCKS, dx.default_heads(10)), Gate)
    assert net.gates is not None
    net.gates.body.gates[0].register_forward_hook(lambda module, given, answer: answer + torch.rand(()))
    with pytest.raises(ConformanceError, match="decide otherwise the second time"):
        check_gates(net, X)


def test_the_command_line_asks_for_heads(tmp_path: Path) -> None:
    opened = dx.open_model("bundled:fashion_resnet20")
    staged = dx.split(opened.model, torch.zeros(1, *opened.spec.shape))
    net = dx.attach(staged, Averaged)
    dx.save(
        net, tmp_path / "net", policy=dx.Policy.never(net.num_exits), spec=opened.spec, model_recipe=opened.recipe
    )  # fmt: skip
    output = str(tmp_path / "out")
    refused = CliRunner().invoke(main, ["export", str(tmp_path / "net"), "-o", output, "--format", "torch"])
    assert refused.exit_code
    assert "--heads own_heads:Averaged" in " ".join(refused.output.split())
    given = ["export", str(tmp_path / "net"), "-o", output, "--format", "torch", "--heads", "own_heads:Averaged"]
    done = CliRunner().invoke(main, given)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out" / "policy.json").read_text())["exits"]


def test_convert_takes_heads_by_name(tmp_path: Path) -> None:
    asked = ["convert", "bundled:fashion_resnet20", "-o", str(tmp_path / "net"), "--heads"]
    refused = CliRunner().invoke(main, [*asked, "poolde"])
    assert refused.exit_code
    assert "did you mean 'pooled'?" in " ".join(refused.output.split())
    small = ["--method", "leaves", "--samples", "64", "--steps", "2", "--calibrate", "bundled", "--json"]
    done = CliRunner().invoke(main, [*asked, "own_heads:Averaged", *small])
    assert done.exit_code == 0, done.output
    back = dx.load(tmp_path / "net", heads=Averaged)
    assert [exit.spec["module"] for exit in back.net.exits] == ["Averaged"] * len(back.net.exits)
    assert not [note for note in back.provenance["notes"] if "the head after" in note]  # a tenth is not reached
