"""Hugging Face's classifiers, made from configurations and saved: they open, rebuild, and fail in words that help."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch.testing import assert_close

import dynext as dx
from dynext.cli import main
from dynext.errors import ModelError
from dynext.models.catalog import open_model, rebuild

transformers = pytest.importorskip("transformers")

LABELS = ("cat", "dog", "owl")
NAMED: dict[str, Any] = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
RESNET: dict[str, Any] = {
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 16],
    "depths": [1, 1, 1],
    "layer_type": "basic",
}


def saved(folder: Path, config: Any, processor: Any = None) -> str:
    """A classifier with random weights, as users save theirs; gives its reference."""
    with dx.seeded(0):
        model = transformers.AutoModelForImageClassification.from_config(config)
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return f"hf:{folder}"


def resnet(folder: Path, **options: Any) -> str:
    processor = transformers.ConvNextImageProcessor(
        size={"shortest_edge": 32}, crop_pct=0.875, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.25, 0.3]
    )
    return saved(folder, transformers.ResNetConfig(**{**RESNET, **NAMED, **options}), processor)


def logits_of(answer: Any) -> torch.Tensor:
    return getattr(answer, "logits", answer)


@torch.no_grad()
def test_size_normalization_and_labels_are_the_processors(tmp_path: Path) -> None:
    opened = open_model(resnet(tmp_path / "net"))
    assert (opened.trained, opened.num_classes, opened.class_names) == (True, 3, LABELS)
    assert opened.spec.shape == (3, 32, 32)
    assert_close(torch.tensor(opened.spec.mean), torch.tensor([0.4, 0.5, 0.6]), rtol=0, atol=1e-4)
    assert_close(torch.tensor(opened.spec.std), torch.tensor([0.2, 0.25, 0.3]), rtol=0, atol=1e-4)
    static = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "net")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert_close(logits_of(opened.model(x)), static(x).logits, rtol=0, atol=0)
    assert next(opened.model.parameters()).dtype == torch.float32

    again = rebuild(json.loads(json.dumps(opened.recipe)))  # what an artifact does; the folder is not needed any more
    again.load_state_dict(getattr(opened.model, "model", opened.model).state_dict())  # logits alone are a module around
    assert not again.training
    assert_close(logits_of(again(x)), static(x).logits, rtol=0, atol=0)
    more = rebuild({**opened.recipe, "arguments": {**opened.recipe["arguments"], "num_classes": 7}})
    assert logits_of(more(x)).shape == (2, 7)


def test_what_is_told_goes_before_what_the_processor_says(tmp_path: Path) -> None:
    opened = open_model(resnet(tmp_path / "net"), shape=(3, 48, 40), mean=[0.5] * 3)
    assert opened.spec.shape == (3, 48, 40)
    assert opened.spec.mean == (0.5, 0.5, 0.5)
    assert_close(torch.tensor(opened.spec.std), torch.tensor([0.2, 0.25, 0.3]), rtol=0, atol=1e-4)


def processors() -> dict[str, tuple[Any, tuple[int, ...], float, float]]:
    """Processors that differ in more than settings: with the side, mean and deviation of what they make of pixels."""
    return {
        "height and width": (transformers.ViTImageProcessor(size={"height": 24, "width": 32}), (3, 24, 32), 0.5, 0.5),
        "no normalization": (
            transformers.ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False), (3, 32, 32), 0.0, 1.0
        ),
        "no rescaling": (
            transformers.ViTImageProcessor(
                size={"height": 32, "width": 32}, do_rescale=False, image_mean=[127.5] * 3, image_std=[255.0] * 3
            ),
            (3, 32, 32), 0.5, 1.0,
        ),
        "crop": (
            transformers.BitImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32},
                                           image_mean=[0.5] * 3, image_std=[0.5] * 3),
            (3, 32, 32), 0.5, 0.5,
        ),
        "twice": (transformers.EfficientNetImageProcessor(
            size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3, include_top=True,
        ), (3, 32, 32), 0.5, 0.25),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["height and width", "no normalization", "no rescaling", "crop", "twice"])
def test_what_a_processor_does_is_found_by_asking_it(kind: str, tmp_path: Path) -> None:
    processor, shape, mean, std = processors()[kind]
    reference = saved(tmp_path / "net", transformers.ResNetConfig(**RESNET), processor)
    spec = open_model(reference).spec
    assert spec.shape == shape
    assert_close(torch.tensor(spec.mean), torch.full((3,), mean), rtol=0, atol=1e-4)
    assert_close(torch.tensor(spec.std), torch.full((3,), std), rtol=0, atol=1e-4)
    image = Image.effect_noise((shape[2], shape[1]), 80).convert("RGB")
    if kind != "crop":  # an image of the right size is taken as it is
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(*shape[1:], 3).permute(2, 0, 1)
        wanted = processor(images=image, return_tensors="pt")["pixel_values"]
        assert_close(spec.normalize(pixels[None]), wanted, rtol=0, atol=2e-3)


@torch.no_grad()
def test_a_net_that_takes_blue_green_red_is_turned_to_take_images_as_they_come(tmp_path: Path) -> None:
    processor = transformers.MobileViTImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_flip_channel_order=True
    )
    opened = open_model(saved(tmp_path / "net", transformers.ResNetConfig(**RESNET, **NAMED), processor))
    static = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "net")
    image = Image.new("RGB", (32, 32), (250, 120, 10))
    wanted = static(processor(images=image, return_tensors="pt")["pixel_values"]).logits
    x = opened.spec.normalize(torch.tensor([[[[250]], [[120]], [[10]]]], dtype=torch.uint8).expand(1, 3, 32, 32))
    assert_close(logits_of(opened.model(x)), wanted, rtol=1e-4, atol=1e-5)
    x_flipped = x.flip(1)
    assert not torch.allclose(logits_of(opened.model(x_flipped)), wanted, rtol=1e-3, atol=1e-4)


def test_placeholder_labels_are_none(tmp_path: Path) -> None:
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    assert open_model(saved(tmp_path / "net", transformers.ResNetConfig(**RESNET), processor)).class_names is None


def test_what_cannot_be_opened_is_told_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = resnet(tmp_path / "net")
    with pytest.raises(ModelError, match="brings its own weights and sizes; leave checkpoint and arguments out"):
        open_model(reference, arguments={"num_classes": 4})
    (tmp_path / "net" / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="has no image processor .*; give shape, mean and std, or save one beside it"):
        open_model(reference)
    assert open_model(reference, shape=(3, 32, 32), mean=[0.5] * 3, std=[0.5] * 3).spec.mean == (0.5,) * 3
    (tmp_path / "net" / "model.safetensors").rename(tmp_path / "net" / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"has no .safetensors file, and weights of other kinds are not read"):
        open_model(reference)
    (tmp_path / "net" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"the folder has no config.json; give one that save_pretrained wrote"):
        open_model(reference)
    with pytest.raises(ModelError, match="there is no such folder"):
        open_model("hf:./nowhere")
    monkeypatch.setitem(sys.modules, "transformers", None)
    for opening in (lambda: open_model(reference), lambda: rebuild({"kind": "hf", "name": "a/b", "arguments": {}})):
        with pytest.raises(ModelError, match=r"transformers is not installed; pip install 'dynext\[hf\]'"):
            opening()


def test_without_a_connection_the_folder_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **given: object) -> None:
        assert given["trust_remote_code"] is False
        assert given["use_safetensors"] is True
        raise OSError("We couldn't connect to 'https://huggingface.co' to load the files")

    monkeypatch.setattr(transformers.AutoModelForImageClassification, "from_pretrained", offline)
    told = (
        r"hf:microsoft/resnet-18 cannot be opened: it is no local folder, and the hub .* cannot be reached; connect, or"
    )
    with pytest.raises(ModelError, match=told):
        open_model("hf:microsoft/resnet-18")


def test_a_backbone_without_a_classifier_is_refused(tmp_path: Path) -> None:
    resnet(tmp_path / "net")
    with dx.seeded(0):
        transformers.ResNetModel(transformers.ResNetConfig(**RESNET)).save_pretrained(tmp_path / "net")
    with pytest.raises(ModelError, match=r"comes without weights for classifier.*it is a backbone, no trained classif"):
        open_model(f"hf:{tmp_path / 'net'}")


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    """Neither from a folder nor from a recipe that somebody else has written."""
    reference = resnet(tmp_path / "net")
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    code = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Net"}
    config.update(auto_map=code, model_type="evil", architectures=["Net"])
    (tmp_path / "net" / "config.json").write_text(json.dumps(config))
    mark = tmp_path / "ran"
    (tmp_path / "net" / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    with pytest.raises(ModelError, match="cannot be opened"):
        open_model(reference)
    with pytest.raises(ModelError, match=r"hf:.* cannot be built"):
        rebuild({"kind": "hf", "name": str(tmp_path / "net"), "arguments": {"config": config}})
    for arguments in ({}, {"config": 3}, {"config": {}}, {"config": {"model_type": "resnet"}, "weights": "x"}):
        with pytest.raises(ModelError):
            rebuild({"kind": "hf", "name": "a/b", "arguments": arguments})
    assert not mark.exists()


def test_half_precision_is_opened_in_float32(tmp_path: Path) -> None:
    reference = resnet(tmp_path / "net")
    static = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "net")
    static.to(torch.bfloat16).save_pretrained(tmp_path / "net")
    opened = open_model(reference)
    assert {p.dtype for p in opened.model.parameters()} == {torch.float32}
    assert next(rebuild(opened.recipe).parameters()).dtype == torch.float32


def test_a_saved_net_is_found_again(tmp_path: Path) -> None:
    opened = open_model(resnet(tmp_path / "static"))
    x = torch.randn(4, *opened.spec.shape, generator=torch.Generator().manual_seed(0))
    net = dx.attach(dx.split(opened.model, x[:1]), dx.default_heads(3))
    dx.save(
        net, tmp_path / "dynamic", policy=dx.Policy.never(net.num_exits), spec=opened.spec,
        model_recipe=opened.recipe, class_names=opened.class_names,
    )  # fmt: skip
    for file in (tmp_path / "static").iterdir():
        file.unlink()
    again = dx.load(tmp_path / "dynamic")
    assert again.class_names == LABELS
    with torch.no_grad():
        assert_close(again.net.staged(x), logits_of(opened.model(x)), rtol=1e-4, atol=1e-5)


def test_the_command_line_takes_it(tmp_path: Path) -> None:
    reference = resnet(tmp_path / "static")
    for index, name in enumerate(LABELS):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(4):
            shade = (60 * index + 20 * number, 200 - 40 * index, 30 * number)
            Image.new("RGB", (40, 40), shade).save(tmp_path / "images" / name / f"{number}.png")

    def ran(*words: str) -> str:
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
        return result.output

    assert "expects 3x32x32, answers 3 classes" in ran("inspect", reference)
    out, images = str(tmp_path / "out"), str(tmp_path / "images")
    few = ("--samples", "32", "--synth", "gaussian", "--steps", "2")
    ran("convert", reference, "-o", out, "--calibrate", images, *few)
    assert any(name in ran("predict", out, f"{images}/cat/0.png") for name in LABELS)
    ran("evaluate", out, "--data", images)
