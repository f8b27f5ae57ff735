"""How each kind of model reference is built, with random weights, and what its inputs are."""

from __future__ import annotations

import difflib
import importlib.util
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dynext.data.datasets import CIFAR10_SPEC
from dynext.errors import ModelError, line
from dynext.models import hugging_face
from dynext.models.compact import MobileNetV2, SqueezeNet
from dynext.models.multi_scale_densenet import CONFIGURATIONS, MSDNet
from dynext.models.resnet import ResNet
from dynext.models.unwrap import bare_name
from dynext.types import InputSpec

Arguments = Mapping[str, Any]

_OUTSIDE = ("weights", "weights_backbone", "pretrained", "pretrained_cfg", "checkpoint_path", "cache_dir")
"""Arguments that would fetch or open files; weights come by the reference or a checkpoint only."""


def build(kind: str, name: str, arguments: Arguments) -> nn.Module:
    """A model of one of the catalog's kinds, with random weights.

    Raises:
        ModelError: the name or an argument is not known, or its package is not installed.
    """
    refused = sorted(set(arguments) & set(_OUTSIDE))
    if refused and kind != "file":
        raise ModelError(f"argument {refused[0]!r} would open a file or a connection; give a checkpoint instead")
    try:
        return _BUILDERS[kind](name, arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError, ZeroDivisionError) as error:
        raise ModelError(f"{kind}:{name} cannot be built with {dict(arguments)} ({line(error)})") from error


def near(name: str, known: Collection[str]) -> str:
    """A hint for an unknown name: the nearest known ones, or some of them."""
    if not known:
        return "there is none at all"
    close = difflib.get_close_matches(name, known, 3)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known are {', '.join(sorted(known)[:8])}{' and so on' if len(known) > 8 else ''}."


def _msdnet(configuration: str, **arguments: Any) -> MSDNet:
    return MSDNet(replace(CONFIGURATIONS[configuration], **arguments))


CIFAR_NETS: Mapping[str, Callable[..., nn.Module]] = {
    "msdnet_anytime": partial(_msdnet, "anytime"),
    "msdnet_budgeted": partial(_msdnet, "budgeted"),
    "squeezenet": SqueezeNet,
    "mobilenetv2": MobileNetV2,
}
"""The CIFAR nets beside the ResNets, by the name in their reference."""


def _cifar(name: str, arguments: Arguments) -> nn.Module:
    if name in CIFAR_NETS:
        return CIFAR_NETS[name](**arguments)
    resnet = re.fullmatch(r"resnet(\d+)", name)
    if resnet is None:
        raise ModelError(f"no CIFAR net {name!r}; give resnet20 (32, 44, 56, 110), {', '.join(CIFAR_NETS)}")
    return ResNet(int(resnet[1]), **arguments)


def cifar_arguments(name: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Width, channels, classes and shortcut option of a CIFAR ResNet, read off its weights' shapes."""
    if name in CIFAR_NETS:
        return {}
    names = [bare_name(name) for name in state]
    anchors = [name for name in names if re.fullmatch(r"(?!.*\blayer\d)(.*\.)?conv1\.weight", name)]
    prefix = min(anchors, key=len, default="conv1.weight").removesuffix("conv1.weight")
    bare = {name.removeprefix(prefix): value for name, value in zip(names, state.values(), strict=True)}
    arguments: dict[str, Any] = {}
    if "conv1.weight" in bare and bare["conv1.weight"].ndim == 4:
        arguments["width"], arguments["channels"] = bare["conv1.weight"].shape[:2]
    if "linear.weight" in bare:
        arguments["num_classes"] = len(bare["linear.weight"])
    arguments["option"] = "B" if any("shortcut" in key for key in bare) else "A"
    return arguments


def cifar_spec(arguments: Arguments) -> InputSpec:
    """The public CIFAR-10 checkpoints' inputs.

    Raises:
        ModelError: the net does not take three channels, so these are not its inputs.
    """
    if arguments.get("channels", 3) != 3:
        raise ModelError(f"a net of {arguments['channels']} channels takes no CIFAR image; give shape, mean and std")
    return CIFAR10_SPEC


def _torchvision(name: str, arguments: Arguments) -> nn.Module:
    from torchvision import models

    check_torchvision(name)
    return models.get_model(name, weights=None, **{**_torchvision_extra(name), **arguments})


def check_torchvision(name: str) -> None:
    """Refuse names that are no torchvision classifier."""
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ModelError(f"torchvision has no classifier {name!r}; {near(name, known)}")


def _torchvision_extra(name: str) -> dict[str, Any]:
    # Their auxiliary heads answer in training only, and their own initialization is slow and warns of its end.
    return {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}


def torchvision_trained(name: str, weights: str, arguments: Arguments) -> tuple[nn.Module, dict[str, Any]]:
    """A torchvision model with named weights, fetched when they are not there, and its arguments for `build`.

    Raises:
        ModelError: no such weights, or they cannot be fetched.
    """
    from torchvision import models

    chosen = torchvision_weights(name, weights)
    try:
        model = models.get_model(name, weights=chosen, **arguments)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a broken download fails its checksum
        raise ModelError(
            f"torchvision:{name}@{weights} cannot be fetched ({error}); without network, give the file as a checkpoint"
        ) from error
    except (TypeError, ValueError) as error:
        raise ModelError(f"torchvision:{name}@{weights} cannot be built with {dict(arguments)} ({error})") from error
    extra = _torchvision_extra(name)
    if extra:  # these weights come with an architecture of their own
        extra.update(aux_logits=model.aux_logits, transform_input=model.transform_input)
    return model, {**extra, **arguments}


def torchvision_weights(name: str, weights: str = "DEFAULT") -> Any:
    """One member of the model's enumeration of weights; its transforms tell size and normalization."""
    from torchvision import models

    check_torchvision(name)
    members = models.get_model_weights(name).__members__
    if weights not in members:
        raise ModelError(f"torchvision's {name} has no weights {weights!r}; {near(weights, members)}")
    return members[weights]


def torchvision_spec(name: str, weights: str | None) -> InputSpec:
    """Crop and normalization of the weights, or of the model's default ones when it comes without."""
    transforms = torchvision_weights(name, weights or "DEFAULT").transforms()
    size = transforms.crop_size[0]
    return InputSpec(shape=(3, size, size), mean=tuple(transforms.mean), std=tuple(transforms.std))


def _timm(name: str, arguments: Arguments) -> nn.Module:
    return _timm_create(name, arguments, pretrained=False)


def timm_trained(name: str, arguments: Arguments) -> nn.Module:
    """A timm model with its pretrained weights, fetched when they are not there."""
    try:
        return _timm_create(name, arguments, pretrained=True)
    except (ModelError, TypeError):
        raise
    except Exception as error:  # the hub's client has many kinds of its own
        raise ModelError(
            f"timm:{name}@pretrained cannot be fetched ({type(error).__name__}: {error}); "
            f"without network, give the file as a checkpoint"
        ) from error


def _timm_create(name: str, arguments: Arguments, *, pretrained: bool) -> nn.Module:
    timm = _timm_package()
    known = timm.list_models()
    if name.partition(".")[0] not in known:
        raise ModelError(f"timm has no model {name!r}; {near(name, known)}")
    return timm.create_model(name, pretrained=pretrained, **arguments)


def timm_spec(model: nn.Module) -> InputSpec:
    """Size and normalization that timm keeps with the model."""
    data = _timm_package().data.resolve_model_data_config(model)
    return InputSpec(shape=tuple(data["input_size"]), mean=tuple(data["mean"]), std=tuple(data["std"]))


def _timm_package() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ModelError("timm is not installed; pip install 'dynext[timm]'") from error
    return timm


def _file(name: str, arguments: Arguments) -> nn.Module:
    """Runs the user's own file, as `python FILE` would: its folder is importable while it runs."""
    path, _, factory = name.rpartition(":")
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise ModelError(f"there is no file {path}; give path/to/file.py:factory")
    spec = importlib.util.spec_from_file_location(f"dynext_user_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} is no Python file; give path/to/file.py:factory")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses in the file look themselves up there
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
        build_model = getattr(module, factory, None)
        if not callable(build_model):
            public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            raise ModelError(f"{path} has no function {factory!r}; {near(factory, public)}")
        model = build_model(**arguments)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{name} failed: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(file.parent))
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} gave a {type(model).__name__}; it must return a torch.nn.Module")
    return model


_BUILDERS = {
    "cifar": _cifar,
    "torchvision": _torchvision,
    "timm": _timm,
    "hf": hugging_face.build,
    "file": _file,
}
KINDS = ("bundled", *_BUILDERS)
