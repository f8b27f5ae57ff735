"""Hugging Face's image classifiers: opened from the hub or a local folder, built again from their configuration.

Weights are read from ``.safetensors`` only, and code that comes with a model is never run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynext.errors import ModelError, line
from dynext.types import InputSpec

SIDE = 256
"""Side of the even images by which a processor is asked what it does."""

LEFT_OUT = (
    "auto_map",
    "quantization_config",
    "attn_implementation",
    "experts_implementation",
    "dtype",
    "torch_dtype",
)
"""Entries of a configuration that name code to run, kernels to fetch, or a type other than float32."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HuggingFaceModel:
    """A trained classifier, what builds it again, and what its image processor and labels say."""

    model: nn.Module
    arguments: dict[str, Any]
    spec: InputSpec
    class_names: tuple[str, ...]


def trained(name: str, told: InputSpec | None) -> HuggingFaceModel:
    """The classifier that the hub, or the folder ``name``, holds, in float32.

    Args:
        told: what it takes; ``None`` asks the image processor that was saved with it.

    Raises:
        ModelError: transformers is not installed, the hub cannot be reached, what is there is no image classifier with
            its weights in .safetensors, or its image processor does not tell what it takes.
    """
    transformers, place = _package(), _place(name)
    try:
        model, report = transformers.AutoModelForImageClassification.from_pretrained(
            place, trust_remote_code=False, use_safetensors=True, output_loading_info=True, **_local(place)
        )
    except Exception as error:  # the hub's client has many kinds of its own
        raise ModelError(f"hf:{name} cannot be opened: {_reason(name, error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"hf:{name} comes without weights for {', '.join(missing[:3])}{' and more' if len(missing) > 3 else ''}: "
            f"it is a backbone, no trained classifier; give one that was fine-tuned on images with labels"
        )
    model = model.float().eval()
    config = {key: value for key, value in model.config.to_dict().items() if not _left_out(key)}
    spec = told or _spec_of(_processor(transformers, place, name), model, name)
    return HuggingFaceModel(model=model, arguments={"config": config}, spec=spec, class_names=_names(model.config))


def build(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The model of a recipe's configuration, with random weights; nothing is read or fetched.

    Raises:
        ModelError: transformers is not installed, or the configuration is not one that it knows.
    """
    transformers = _package()
    given = dict(arguments)
    config = given.pop("config", None)
    num_classes = given.pop("num_classes", None)
    if given or not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(
            f"the recipe of hf:{name} holds no configuration of an image classifier; open it anew (hf:{name})"
        )
    known = {key: value for key, value in config.items() if not _left_out(key) and key != "model_type"}
    if num_classes is not None:
        known = {key: value for key, value in known.items() if key not in ("id2label", "label2id", "num_labels")}
        known["num_labels"] = num_classes
    if "use_pretrained_backbone" in known:
        known["use_pretrained_backbone"] = False
    configuration = transformers.AutoConfig.for_model(config["model_type"], **known)
    return transformers.AutoModelForImageClassification.from_config(configuration, trust_remote_code=False)


def _package() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ModelError("transformers is not installed; pip install 'dynext[hf]'") from error
    return transformers


def _place(name: str) -> str:
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def _local(place: str) -> dict[str, Any]:
    return {"local_files_only": True} if Path(place).is_dir() else {}


def _left_out(key: str) -> bool:
    return key.startswith("_") or key in LEFT_OUT


def _reason(name: str, error: Exception) -> str:
    """What went wrong, in one line, and what to do about it."""
    place = Path(name).expanduser()
    if place.is_dir():
        if not (place / "config.json").is_file():
            return "the folder has no config.json; give one that save_pretrained wrote"
        if not list(place.glob("*.safetensors")):
            return (
                "the folder has no .safetensors file, and weights of other kinds are not read, since they can run "
                "code; save it with model.save_pretrained(folder)"
            )
        return f"{type(error).__name__}: {line(error)}"
    if name.count("/") > 1 or name.startswith((".", "~", "/")):
        return "there is no such folder; give one that save_pretrained wrote, or a model of the hub as owner/name"
    if _unreachable(error):
        return (
            "it is no local folder, and the hub (huggingface.co) cannot be reached; connect, or fetch the model "
            "elsewhere and give its folder (hf:path/to/folder, with config.json, model.safetensors and "
            f"preprocessor_config.json) [{type(error).__name__}]"
        )
    return f"{type(error).__name__}: {line(error)}"


def _unreachable(error: BaseException | None) -> bool:
    """Whether a connection failed, somewhere in the chain of errors that the hub's client gives."""
    while error is not None:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & {
            "LocalEntryNotFoundError",
            "OfflineModeIsEnabled",
            "ConnectError",
            "ConnectionError",
            "TimeoutError",
        }:
            return True
        if "couldn't connect" in str(error) or "offline" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _names(config: Any) -> tuple[str, ...]:
    """The labels, in order; none where they are the library's own placeholders."""
    labels = {int(number): str(label) for number, label in (config.id2label or {}).items()}
    if sorted(labels) != list(range(len(labels))) or all(re.fullmatch(r"LABEL_\d+", text) for text in labels.values()):
        return ()
    return tuple(labels[number] for number in range(len(labels)))


def _processor(transformers: Any, place: str, name: str) -> Any:
    try:
        return transformers.AutoImageProcessor.from_pretrained(place, trust_remote_code=False, **_local(place))
    except Exception as error:  # none was saved, or one that this version does not know
        raise ModelError(
            f"hf:{name} has no image processor that tells what pixels it takes ({line(error)}); give shape, mean and "
            f"std, or save one beside it (processor.save_pretrained)"
        ) from error


def _spec_of(processor: Any, model: nn.Module, name: str) -> InputSpec:
    """What the processor makes of pixels: it is asked with images that are 0, 255, and red.

    Processors differ in more than their settings tell: some normalize twice, some take channels as blue, green, red.
    ``model`` is changed to take them as red, green, blue, as images come.

    Raises:
        ModelError: what it does is no scaling per channel.
    """
    try:
        low_chw, high_chw, red_chw = (_processed(processor, color) for color in ((0,) * 3, (255,) * 3, (255, 0, 0)))
    except Exception as error:
        raise ModelError(f"the image processor of hf:{name} fails ({line(error)}); give shape, mean and std") from error
    channels, height, width = low_chw.shape
    low_c, high_c, red_c = (x[:, height // 2, width // 2] for x in (low_chw, high_chw, red_chw))
    scale_c = high_c - low_c
    if channels != 3 or bool((scale_c <= 0).any()):
        raise ModelError(f"the image processor of hf:{name} does not scale three channels; give shape, mean and std")
    if float(red_c[2] - low_c[2]) > float(scale_c[2]) / 2:
        _take_rgb_(model, torch.stack([low_chw, high_chw, red_chw]), name)
        low_c, scale_c = low_c.flip(0), scale_c.flip(0)
    mean = tuple(round(float(value), 6) for value in -low_c / scale_c)
    std = tuple(round(float(value), 6) for value in 1 / scale_c)
    return InputSpec(shape=(channels, height, width), mean=mean, std=std)


def _processed(processor: Any, color: tuple[int, ...]) -> Tensor:
    image = np.broadcast_to(np.array(color, dtype=np.uint8), (SIDE, SIDE, 3)).copy()
    return torch.as_tensor(np.array(processor(images=image, return_tensors="np")["pixel_values"][0])).double()


@torch.no_grad()
def _take_rgb_(model: nn.Module, x: Tensor, name: str) -> None:
    """Turn the first convolution's channels around, so that the model takes red, green, blue."""
    wanted = model(x.float()).logits
    stem = next((m for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3 and m.groups == 1), None)
    if stem is not None:
        stem.weight.copy_(stem.weight.flip(1))
        if torch.allclose(model(x.float().flip(1)).logits, wanted, rtol=1e-3, atol=1e-4):
            return
    raise ModelError(f"hf:{name} takes channels as blue, green, red, and no convolution that could turn them was there")
