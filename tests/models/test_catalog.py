"""References to models: every form opens, rebuilds to the same net, and fails with a text that helps."""

import json
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from dynext.data import bundled
from dynext.data.datasets import CIFAR10_SPEC, FASHION_CLASSES, FASHION_SPEC, array
from dynext.errors import ModelError
from dynext.models import ResNet
from dynext.models.catalog import Opened, Reference, open_model, rebuild

FACTORY = """
import torch
from layers import Flat

def tiny(classes: int = 3) -> torch.nn.Module:
    return torch.nn.Sequential(Flat(), torch.nn.Linear(12, classes)).double()

def wrong() -> str:
    return "no net"

def broken() -> None:
    raise RuntimeError("out of paper")

def image() -> torch.nn.Module:
    return torch.nn.Conv2d(3, 5, 1)
"""


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    (tmp_path / "layers.py").write_text("from torch.nn import Flatten as Flat\n")
    (tmp_path / "nets.py").write_text(FACTORY)
    return tmp_path / "nets.py"


def check_rebuilds(opened: Opened) -> None:
    """What an artifact does: recipe through JSON, then the weights."""
    again = rebuild(json.loads(json.dumps(opened.recipe)))
    again.load_state_dict(opened.model.state_dict())
    x = torch.randn(2, *opened.spec.shape, generator=torch.Generator().manual_seed(0))
    assert not again.training
    assert not opened.model.training
    assert_close(again(x), opened.model(x), rtol=0, atol=0)


def test_cifar_by_name() -> None:
    opened = open_model("cifar:resnet8", arguments={"width": 4, "num_classes": 7})
    assert (opened.num_classes, opened.spec, opened.trained) == (7, CIFAR10_SPEC, False)
    check_rebuilds(opened)


def test_cifar_checkpoint_tells_width_classes_channels_and_option(tmp_path: Path) -> None:
    net = ResNet(8, num_classes=7, width=6, channels=1, option="B").eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "net.th")
    opened = open_model("cifar:resnet8", checkpoint=tmp_path / "net.th", shape=(1, 20, 20), mean=[0.5], std=[0.5])
    x = torch.randn(2, 1, 20, 20)
    assert_close(opened.model(x), net(x))
    assert opened.trained
    check_rebuilds(opened)
    with pytest.raises(ModelError, match="net of 1 channels takes no CIFAR image"):
        open_model("cifar:resnet8", checkpoint=tmp_path / "net.th")
    with pytest.raises(ModelError, match=r"missing: layer1.1.bn1.bias, .* and .* more"):
        open_model("cifar:resnet20", checkpoint=tmp_path / "net.th", shape=(1, 20, 20), mean=[0.5], std=[0.5])


@pytest.mark.parametrize(("depth", "accuracy"), [(20, 0.68), (32, 0.75)])
def test_public_cifar_checkpoints_answer(shared: Path, depth: int, accuracy: float) -> None:
    """Measured .73 and .80 on these samples, whose JPEG compression costs the nets a good part of their 92 %."""
    opened = open_model(f"cifar:resnet{depth}", checkpoint=shared / "models" / f"cifar10_resnet{depth}.th")
    batch = array(shared / "data" / "cifar10_test_jpeg.npz", opened.spec).take(torch.arange(256))
    with torch.inference_mode():
        right = opened.model(batch.x).argmax(1) == batch.y
    assert right.float().mean() > accuracy


def test_bundled_models_bring_weights_names_and_normalization(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "FOLDERS", (tmp_path,))
    net = ResNet(8, width=4, channels=1).eval()
    save_file(net.state_dict(), tmp_path / "small.safetensors")
    (tmp_path / "small.json").write_text(json.dumps({"config": {"depth": 8, "width": 4}}))
    opened = open_model("bundled:small")
    assert (opened.spec, opened.class_names, opened.num_classes) == (FASHION_SPEC, FASHION_CLASSES, 10)
    assert_close(opened.model.state_dict(), net.state_dict())
    check_rebuilds(opened)
    with pytest.raises(ModelError, match="no model 'smal' ships with dynext; did you mean small"):
        open_model("bundled:smal")
    (tmp_path / "small.json").write_text("{}")
    with pytest.raises(ModelError, match="card of the bundled model small is damaged"):
        open_model("bundled:small")


def test_torchvision_without_weights_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_network(monkeypatch)
    opened = open_model("torchvision:squeezenet1_1", arguments={"num_classes": 5}, shape=(3, 64, 64))
    assert opened.spec.mean == (0.485, 0.456, 0.406)
    assert (opened.num_classes, opened.class_names) == (5, None)
    check_rebuilds(opened)


def test_torchvision_weights_bring_names_and_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def fetch(url: str, **_: object) -> dict[str, torch.Tensor]:
        from torchvision.models import googlenet

        fetched.append(url)
        return googlenet(init_weights=False).state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    opened = open_model("torchvision:googlenet@IMAGENET1K_V1", shape=(3, 64, 64))
    assert len(fetched) == 1
    assert opened.class_names is not None
    assert opened.class_names[0] == "tench"
    check_rebuilds(opened)  # the weights change the architecture: transform_input, no auxiliary heads


def refuse_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)


def test_weights_without_network_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_network(monkeypatch)
    with pytest.raises(
        ModelError, match=r"resnet18@DEFAULT cannot be fetched \(.*no network.*\); without network, give"
    ):
        open_model("torchvision:resnet18@DEFAULT")
    with pytest.raises(ModelError, match="no weights 'IMAGENET1K_V3'; did you mean IMAGENET1K_V1"):
        open_model("torchvision:resnet18@IMAGENET1K_V3")


def test_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm", reason="timm is an optional extra")
    opened = open_model("timm:resnet10t", shape=(1, 32, 32), mean=[0.5], std=[0.25], arguments={"num_classes": 4})
    assert (opened.spec.shape, opened.num_classes) == ((1, 32, 32), 4)
    check_rebuilds(opened)
    with pytest.raises(ModelError, match="timm has no model 'resnet19'; did you mean"):
        open_model("timm:resnet19")
    with pytest.raises(ModelError, match="timm has no model"):
        rebuild({"kind": "timm", "name": "hf-hub:somebody/something", "arguments": {}})

    def fetch(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(timm, "create_model", fetch)
    with pytest.raises(ModelError, match=r"cannot be fetched \(ConnectionError: no network\)"):
        open_model("timm:resnet10t@pretrained")


def test_own_file(own_file: Path) -> None:
    opened = open_model(f"{own_file}:tiny", shape=(3, 2, 2), arguments={"classes": 4})
    assert opened.num_classes == 4
    assert (opened.spec.mean, opened.spec.std) == ((0.0,) * 3, (1.0,) * 3)
    with pytest.raises(ModelError, match="is code of yours; open it and give model="):
        rebuild(opened.recipe)


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        ("tiny", r"what does .* take\? Give shape"),
        ("tinny", "no function 'tinny'; did you mean tiny"),
        ("wrong", "gave a str; it must return a torch.nn.Module"),
        ("broken", "failed: RuntimeError: out of paper"),
    ],
)
def test_faults_of_an_own_file_are_told(own_file: Path, factory: str, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        open_model(f"{own_file}:{factory}")


def test_outputs_and_inputs_are_checked(own_file: Path) -> None:
    with pytest.raises(ModelError, match=r"gives shape \(1, 5, 4, 4\) for one sample; a classifier gives logits"):
        open_model(f"{own_file}:image", shape=(3, 4, 4))
    with pytest.raises(ModelError, match=r"does not take samples of shape \(3, 4, 4\)"):
        open_model(f"{own_file}:tiny", shape=(3, 4, 4))


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("resnet18", "is no model reference"),
        ("torchvison:resnet18", "did you mean torchvision"),
        ("torchvision:resnet81", "torchvision has no classifier 'resnet81'; did you mean resnet18"),
        ("torchvision:fcn_resnet50", "torchvision has no classifier"),
        ("cifar:vgg11", "no CIFAR net 'vgg11'; give resnet20"),
        ("cifar:resnet20@best", "take no @weights; give a checkpoint file"),
        ("nowhere.py:net", "there is no file nowhere.py"),
        ("file:nowhere", "is no model reference"),
    ],
)
def test_references_that_name_nothing(reference: str, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        open_model(reference)


def test_weights_come_from_one_place(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="brings its own weights"):
        open_model("torchvision:resnet18@DEFAULT", checkpoint=tmp_path / "net.pt")
    with pytest.raises(ModelError, match="argument 'weights' would open a file or a connection"):
        open_model("torchvision:resnet18", arguments={"weights": "DEFAULT"})


def test_references_are_taken_apart() -> None:
    assert Reference.parse("timm:resnet18.a1_in1k@pretrained") == Reference(
        kind="timm", name="resnet18.a1_in1k", weights="pretrained"
    )
    assert Reference.parse("C:/nets/mine.py:make") == Reference(kind="file", name="C:/nets/mine.py:make")


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"kind": "bundled", "name": "x", "arguments": {}},
        {"kind": "cifar", "name": "resnet20", "arguments": {"wide": 3}},
        {"kind": "cifar", "name": "resnet20", "arguments": 7},
        {"kind": "cifar", "name": 20, "arguments": {}},
    ],
)
def test_recipes_that_build_nothing(recipe: dict[str, object]) -> None:
    with pytest.raises(ModelError):
        rebuild(recipe)


def test_opening_leaves_the_callers_randomness_alone() -> None:
    before = torch.get_rng_state()
    opened = open_model("cifar:resnet8", arguments={"width": 4})
    assert torch.equal(torch.get_rng_state(), before)
    assert_close(open_model("cifar:resnet8", arguments={"width": 4}).model.state_dict(), opened.model.state_dict())
    assert isinstance(opened.model, nn.Module)
    assert np.isfinite(opened.model(torch.zeros(1, 3, 32, 32)).detach().numpy()).all()
