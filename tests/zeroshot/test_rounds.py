"""Later rounds are made against exits that know the earlier ones; killed, they go on where they were."""

from pathlib import Path

import pytest
import torch
from torch import nn

import dynext.zeroshot.rounds as subject
from dynext.data.samples import Samples
from dynext.errors import FitError, SourceError
from dynext.net.dynamic_net import DynamicNet
from dynext.testing import check_source
from dynext.types import InputSpec, Source
from dynext.zeroshot.rounds import Joined, in_rounds
from dynext.zeroshot.settings import Run, Synthesis
from dynext.zeroshot.synth.inversion import Inversion

QUIET = Run(progress=False)


def inverted(n: int) -> Synthesis:
    return Synthesis(method="inversion", n=n, options={"settings": Inversion(iterations=1), "start": "leaves"})


def everything(source: Source) -> torch.Tensor:
    return torch.cat([batch.x for batch in source])


def test_each_round_is_made_against_what_the_one_before_taught(
    teacher: nn.Module, student: DynamicNet, spec: InputSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict] = []
    taught: list[int] = []
    make, distill = subject.synthesize, subject.distill
    monkeypatch.setattr(subject, "synthesize", lambda *a, **k: asked.append(k) or make(*a, **k))
    monkeypatch.setattr(subject, "distill", lambda *a, **k: taught.append(len(a[2])) or distill(*a, **k))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    rows = in_rounds(student, teacher, spec, inverted(17), rounds=3, steps=3, seed=5, progress=False)
    assert [k["n"] for k in asked] == [6, 6, 5]
    assert len({k["seed"] for k in asked}) == 3
    assert taught == [6, 12]
    heads = [k["against"].exits[0].classifier.weight for k in asked if "against" in k]
    assert len(heads) == 2
    assert not torch.equal(*heads)
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())
    assert len(rows) == 17
    assert len({row.numpy().tobytes() for row in everything(rows)}) == 17
    check_source(rows)


def test_killed_between_rounds_it_goes_on_to_the_same_rows(
    teacher: nn.Module, student: DynamicNet, spec: InputSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(folder: Path) -> torch.Tensor:
        return everything(in_rounds(student, teacher, spec, inverted(12), steps=3, folder=folder, progress=False))

    def stop(*_, **__) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(subject, "distill", stop)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "killed")
    assert [p.name for p in (tmp_path / "killed").iterdir()] == ["round0"]
    assert torch.equal(make(tmp_path / "killed"), make(tmp_path / "whole"))
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == ["round0", "round1", "round1.ckpt"]


def test_nonsense_is_refused(teacher: nn.Module, student: DynamicNet, spec: InputSpec) -> None:
    with pytest.raises(SourceError, match="1 samples in 2 rounds"):
        in_rounds(student, teacher, spec, inverted(1), progress=False)
    with pytest.raises(FitError, match="give folder= in its place"):
        in_rounds(student, teacher, spec, inverted(4), checkpoint="state.ckpt")
    with pytest.raises(SourceError, match="method leaves has no option against"):
        in_rounds(student, teacher, spec, Synthesis(method="leaves", n=4), steps=1, progress=False)
    rows = Samples(pixels=torch.zeros(2, 3, 8, 8), spec=spec)
    with pytest.raises(SourceError, match="cannot be joined"):
        Joined(parts=[rows, Samples(pixels=rows.pixels, spec=spec, bn="batch")])
    with pytest.raises(SourceError, match="no source to join"):
        Joined(parts=[])
