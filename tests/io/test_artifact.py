"""A dynamic net as a folder: exact round trips, and clear refusals of everything else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from artifacts import CIFAR, SPEC, dynamic, half
from gated_nets import LEARNED
from torch import nn
from torch.testing import assert_close
from zoo import NETS

from dynext.atomic import replaced_folder
from dynext.data.samples import Samples
from dynext.errors import ArtifactError, ModelError, PolicyError
from dynext.graph import stages_by_hand
from dynext.graph.split import split
from dynext.io.artifact import CARD, FILES, PAGE, load, save
from dynext.models.catalog import open_model
from dynext.modules.exits import default_heads
from dynext.modules.gates import GateSpec, random_gates, static_gates
from dynext.net.attach import attach, attach_gates
from dynext.net.collect import collect
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.policy import Policy
from dynext.runtime.cost import CostTable
from dynext.types import InputSpec


def samples(n: int = 6) -> torch.Tensor:
    return torch.randn(n, *SPEC.shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    net = dynamic()
    return save(net, tmp_path / "net", policy=half(net), spec=SPEC, model_recipe=CIFAR)


def check_same_net(loaded: DynamicNet, net: DynamicNet, x: torch.Tensor, policy: Policy) -> None:
    assert not any(m.training for m in loaded.modules())
    assert_close(loaded.all_exits(x), net.all_exits(x), rtol=0, atol=0)
    ours, theirs = loaded.run(x, policy), net.run(x, policy)
    assert_close((ours.logits, ours.exit, ours.macs), (theirs.logits, theirs.exit, theirs.macs), rtol=0, atol=0)
    assert loaded.state_dict().keys() == net.state_dict().keys()


@pytest.mark.parametrize("granularity", ["stage", "block"])
def test_everything_comes_back(tmp_path: Path, granularity: str) -> None:
    net = dynamic(granularity=granularity)
    net.cost = CostTable(
        rows=(1, 2), stage_ms=((1.0, 2.0),) * len(net.staged.stages), exit_ms=((0.1, 0.2),) * len(net.exits),
        gather_ms=((0.1, 0.1),) * len(net.staged.stages), device="cpu", threads=1,
    )  # fmt: skip
    policy = half(net)
    table = collect(net, Samples(pixels=torch.rand(5, *SPEC.shape), y=torch.arange(5), spec=SPEC))
    folder = save(
        net, tmp_path / "out" / "net", policy=policy, spec=SPEC, model_recipe=CIFAR, class_names="abcdefghij",
        table=table, provenance={"seed": 3},
    )  # fmt: skip
    loaded = load(folder)
    check_same_net(loaded.net, net, samples(), policy)
    assert (loaded.policy, loaded.spec, loaded.cost) == (policy, SPEC, net.cost)
    assert (loaded.class_names, loaded.provenance, loaded.model_recipe) == (tuple("abcdefghij"), {"seed": 3}, CIFAR)
    assert loaded.net.cost == net.cost
    assert loaded.table is not None
    assert_close(loaded.table.logits_nek, table.logits_nek)
    assert loaded.versions["torch"] == torch.__version__
    assert [p.name for p in folder.parent.iterdir()] == ["net"]


@pytest.mark.parametrize("gates", [*LEARNED.values(), static_gates([1, 0, 0.5]), random_gates([0.1, 0.5, 0.9], seed=3)])
def test_gates_come_back(tmp_path: Path, gates: GateSpec) -> None:
    model = open_model("cifar:resnet14", arguments={"width": 4}).model
    staged = split(model, torch.zeros(1, *SPEC.shape), granularity="block")
    net = attach_gates(attach(staged, default_heads(10), at=["layer2.0"]), gates, at=staged.skippable[:3], seed=5)
    policy = replace(half(net), keep_g=(0.5, None, 0.8))
    table = collect(net, Samples(pixels=torch.rand(5, *SPEC.shape), spec=SPEC), keep=policy.keep_g)
    recipe = {"kind": "cifar", "name": "resnet14", "arguments": {"width": 4}}
    loaded = load(save(net, tmp_path / "net", policy=policy, spec=SPEC, model_recipe=recipe, table=table))
    check_same_net(loaded.net, net, samples(), policy)
    assert torch.equal(loaded.net.run(samples(), policy).ran, net.run(samples(), policy).ran)
    assert loaded.policy == policy
    assert loaded.net.gates.spec == net.gates.spec
    assert (loaded.net.gates.start_macs, loaded.net.gates.macs_g) == (net.gates.start_macs, net.gates.macs_g)
    assert torch.equal(loaded.table.skipped.ran_ng, table.skipped.ran_ng)
    with pytest.raises(PolicyError, match="the policy is for 2 gates, this net has 3"):
        save(net, tmp_path / "other", policy=replace(policy, keep_g=(0.5, 0.5)), spec=SPEC)


def test_folders_from_before_there_were_gates_still_load(saved: Path) -> None:
    card = json.loads((saved / CARD).read_text())
    assert card.pop("gates") is None
    assert "keep_g" not in card["policy"]
    (saved / CARD).write_text(json.dumps(card))
    assert load(saved).net.gates is None


@pytest.mark.parametrize("name", sorted(NETS))
def test_nets_of_ones_own_come_back_with_their_model(tmp_path: Path, name: str) -> None:
    model, example = NETS[name]()
    staged = split(model, example)
    net = attach(staged, default_heads(staged.num_classes)).eval()
    shape = tuple(example.shape[1:])
    spec = InputSpec(shape=shape, mean=(0.0,) * shape[0], std=(1.0,) * shape[0])
    save(net, tmp_path / "net", policy=half(net), spec=spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # the weights come from the folder, not from the model given
    before = {key: value.clone() for key, value in model.state_dict().items()}
    loaded = load(tmp_path / "net", model=model)
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    check_same_net(loaded.net, net, x, loaded.policy)
    assert_close(model.state_dict(), before)
    with pytest.raises(ArtifactError, match="the static net was your own; give its architecture"):
        load(tmp_path / "net")


def test_stages_by_hand_come_back_as_given(tmp_path: Path) -> None:
    parts = [nn.Sequential(nn.Flatten(), nn.Linear(768, 16)), nn.Sequential(nn.ReLU(), nn.Linear(16, 10))]
    staged = stages_by_hand(parts, torch.zeros(2, *SPEC.shape))
    net = attach(staged, default_heads(10)).eval()
    save(net, tmp_path / "net", policy=half(net), spec=SPEC)
    loaded = load(tmp_path / "net", model=staged)
    check_same_net(loaded.net, net, samples(), loaded.policy)
    with pytest.raises(ArtifactError, match="stages were given by hand"):
        load(tmp_path / "net", model=nn.Sequential(*parts))


class Tied(nn.Module):
    """Two names for one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.first(x).relu()).relu())


def test_tied_tensors_are_kept_once_and_tied_again(tmp_path: Path) -> None:
    spec = InputSpec(shape=(8,), mean=(0.0,) * 8, std=(1.0,) * 8)
    net = attach(split(Tied(), torch.zeros(2, 8), ["first"]), default_heads(3)).eval()
    save(net, tmp_path / "net", policy=half(net), spec=spec)
    assert len(json.loads((tmp_path / "net" / CARD).read_text())["weights"]["shared"]) == 1
    loaded = load(tmp_path / "net", model=Tied())
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    check_same_net(loaded.net, net, x, loaded.policy)
    big = [p for p in loaded.net.staged.parameters() if p.shape == (8, 8)]
    assert len(big) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_come_back_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    model = open_model("cifar:resnet8", arguments={"width": 4}).model.to(dtype)
    net = attach(split(model, torch.zeros(1, *SPEC.shape, dtype=dtype), ["layer1"]), default_heads(10)).eval()
    save(net, tmp_path / "net", policy=half(net), spec=SPEC, model_recipe=CIFAR)
    loaded = load(tmp_path / "net").net
    assert_close(loaded.all_exits(samples().to(dtype)), net.all_exits(samples().to(dtype)), rtol=0, atol=0)


def test_saving_changes_nothing(tmp_path: Path) -> None:
    net = dynamic().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    load(save(net, tmp_path / "net", policy=half(net), spec=SPEC, model_recipe=CIFAR))
    assert all(m.training for m in net.modules())
    assert_close(dict(net.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_net_is_replaced_only_by_a_complete_one(saved: Path) -> None:
    (saved / "notes.txt").write_text("mine")
    before = load(saved).net
    other = dynamic(seed=5)

    class FullDisk:
        def save(self, path: Path) -> None:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save(other, saved, policy=half(other), spec=SPEC, model_recipe=CIFAR, table=FullDisk())
    check_same_net(load(saved).net, before, samples(), half(before))
    save(other, saved, policy=half(other), spec=SPEC, model_recipe=CIFAR)
    check_same_net(load(saved).net, other, samples(), half(other))
    assert (saved / "notes.txt").read_text() == "mine"
    assert [p.name for p in saved.parent.iterdir()] == ["net"]


def test_a_report_is_replaced_at_the_instant_of_its_net(saved: Path) -> None:
    before, other = load(saved).net, dynamic(seed=5)
    (saved / PAGE).write_text("<html>old")
    (saved / "notes.txt").write_text("mine")

    def save_with_report(report: str | None) -> None:
        with replaced_folder(saved, mark=CARD, owned=FILES) as partial:
            save(other, partial, policy=half(other), spec=SPEC, model_recipe=CIFAR)
            (partial / PAGE).write_text(report)

    with pytest.raises(TypeError):
        save_with_report(None)
    check_same_net(load(saved).net, before, samples(), half(before))
    assert (saved / PAGE).read_text() == "<html>old"
    save_with_report("<html>new")
    check_same_net(load(saved).net, other, samples(), half(other))
    assert (saved / PAGE).read_text() == "<html>new"
    assert (saved / "notes.txt").read_text() == "mine"
    assert [p.name for p in saved.parent.iterdir()] == ["net"]
    save(other, saved, policy=half(other), spec=SPEC, model_recipe=CIFAR)
    assert not (saved / PAGE).exists()  # a report on another saving


def test_other_peoples_folders_are_left_alone(tmp_path: Path) -> None:
    net = dynamic()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("x")
    with pytest.raises(ArtifactError, match=r"holds one.jpg and no net.json; name a new folder"):
        save(net, tmp_path / "photos", policy=half(net), spec=SPEC)
    with pytest.raises(ArtifactError, match="is a file; name a folder"):
        save(net, tmp_path / "photos" / "one.jpg", policy=half(net), spec=SPEC)
    assert [p.name for p in tmp_path.rglob("*")] == ["photos", "one.jpg"]


def test_what_does_not_fit_is_not_saved(tmp_path: Path) -> None:
    net = dynamic()
    with pytest.raises(PolicyError, match="the policy is for 2 exits"):
        save(net, tmp_path / "net", policy=Policy.never(2), spec=SPEC)
    with pytest.raises(ArtifactError, match="recipe and provenance must be JSON"):
        save(net, tmp_path / "net", policy=half(net), spec=SPEC, provenance={"rows": object()})
    with pytest.raises(ModelError, match="2 class names for 10 classes; give one each"):
        save(net, tmp_path / "net", policy=half(net), spec=SPEC, class_names=["cat", "dog"])
    with pytest.raises(ModelError, match=r"the spec says samples of \(3, 9, 8\), the model expects \(3, 16, 16\)"):
        save(net, tmp_path / "net", policy=half(net), spec=replace(SPEC, shape=(3, 9, 8)))
    assert not list(tmp_path.iterdir())
