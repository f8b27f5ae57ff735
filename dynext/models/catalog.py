"""Opens classifiers by a short reference, and builds them again from the recipe that an artifact holds.

=============================  =====================================================================================
``bundled:fashion_resnet20``   ships with dynext, weights included
``torchvision:resnet18``       random weights; ``torchvision:resnet18@DEFAULT`` fetches torchvision's
``timm:resnet18``              random weights; ``timm:resnet18@pretrained`` fetches timm's
``hf:microsoft/resnet-18``      fetches an image classifier of Hugging Face's hub; ``hf:FOLDER`` opens a saved one
``cifar:resnet20``             our CIFAR ResNet; give the public checkpoints' file
``cifar:msdnet_anytime``       other nets in CIFAR form: msdnet_budgeted, squeezenet, mobilenetv2
``path/to/file.py:factory``    your own file is run, as code, and ``factory(**arguments)`` called
=============================  =====================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynext.brief import short_repr
from dynext.data.bundled import bundled_file, bundled_folder
from dynext.data.datasets import FASHION_CLASSES, FASHION_SPEC
from dynext.errors import DynextError, ModelError
from dynext.graph.teacher import plain_classifier
from dynext.models import families, hugging_face
from dynext.models.checkpoint import load_state, read_state
from dynext.seeding import seeded
from dynext.types import InputSpec
from dynext.usual_modes import in_usual_modes

Recipe = dict[str, Any]
"""JSON that builds a model again without its weights: ``kind``, ``name``, ``arguments``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A classifier in evaluation, the inputs that it expects, and how to build it again."""

    __repr__ = short_repr

    model: nn.Module
    spec: InputSpec
    recipe: Recipe
    num_classes: int
    class_names: tuple[str, ...] | None = None
    trained: bool
    """Whether weights were loaded; random ones otherwise (a file's factory may have loaded some itself)."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A model reference, taken apart."""

    kind: str
    name: str
    weights: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises ModelError when ``text`` is of none of the catalog's forms."""
        path, _, factory = text.rpartition(":")
        if path.endswith(".py") and factory:
            return cls(kind="file", name=text)
        kind, colon, rest = text.partition(":")
        name, at, weights = (rest, "", "") if kind == "hf" else rest.partition("@")  # a folder may be called anything
        if not colon or not name or kind not in families.KINDS or kind == "file":
            near = families.near(kind, [k for k in families.KINDS if k != "file"])
            raise ModelError(
                f"{text!r} is no model reference; {near} Give kind:name, such as torchvision:resnet18, "
                f"or path/to/file.py:factory"
            )
        if at and kind not in ("torchvision", "timm"):
            raise ModelError(f"{kind}: models take no @weights; give a checkpoint file instead of @{weights}")
        return cls(kind=kind, name=name, weights=weights or None)


@in_usual_modes
def open_model(
    reference: str,
    *,
    checkpoint: Path | str | None = None,
    shape: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Opened:
    """The classifier that ``reference`` names (forms above), in evaluation.

    Nothing is fetched unless the reference asks for weights. Checkpoints (of `torch.save` or safetensors, whatever they
    are called) are read as tensors only, never as code; what wrappers put around and before the weights comes off, and
    the logger ``dynext`` says so.

    Args:
        checkpoint: weights to load into the model; for ``cifar:`` they also tell width, classes and option.
        shape: of one sample, where it is not the reference's own; needed for a file's factory.
        mean, std: normalization of pixels in [0, 1]; a file's factory gets 0 and 1 without them.
        arguments: for the model's constructor, such as ``num_classes``.

    Raises:
        ModelError: unknown name, weights that cannot be fetched or do not fit, or outputs that are not ``[b k]``.
    """
    parsed = Reference.parse(reference)
    if checkpoint is not None and (parsed.weights or parsed.kind == "bundled"):
        raise ModelError(f"{reference} brings its own weights; leave the checkpoint {checkpoint} out, or the weights")
    if parsed.kind == "bundled":
        if shape or mean or std or arguments:
            raise ModelError(f"{reference} comes as it is; leave shape, mean, std and arguments out")
        return _bundled(parsed.name)
    if parsed.kind == "hf":
        if checkpoint is not None or arguments:
            raise ModelError(f"{reference} brings its own weights and sizes; leave checkpoint and arguments out")
        return _hugging_face(parsed.name, shape, mean, std)
    state = None if checkpoint is None else read_state(checkpoint)
    with seeded(0):
        model, recipe = _built(parsed, state, dict(arguments or {}), shape)
    if state is not None:
        load_state(model, state, source=str(checkpoint))
    model.eval()
    spec = _spec(parsed, model, recipe, shape, mean, std)
    categories = _categories(parsed)
    model = plain_classifier(model, torch.zeros(1, *spec.shape)) if parsed.kind == "file" else model
    num_classes = _count_classes(model, spec, reference)
    return Opened(
        model=model,
        spec=spec,
        recipe=recipe,
        num_classes=num_classes,
        class_names=categories if len(categories) == num_classes else None,
        trained=state is not None or parsed.weights is not None,
    )


def rebuild(recipe: Mapping[str, Any]) -> nn.Module:
    """The model of ``recipe`` in evaluation, random weights: what loading an artifact starts from.

    A file's factory is not run from here: a saved folder must not make anybody run code.

    Raises:
        ModelError: a file's factory, or a recipe that this version does not know.
    """
    try:
        kind, name, arguments = recipe["kind"], recipe["name"], dict(recipe["arguments"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{recipe!r} is no model recipe; its keys are kind, name and arguments") from error
    if kind == "file":
        raise ModelError(
            f"the static net comes from {name}, which is code of yours; open it and give model= "
            f"(a command: --trust, once, or --model {name})"
        )
    if kind not in families.KINDS or kind == "bundled" or not isinstance(name, str):
        raise ModelError(f"a model of kind {kind!r} is not known to this version of dynext; update it or give model=")
    with seeded(0):
        return families.build(kind, name, arguments).eval()


def _built(
    parsed: Reference, state: Mapping[str, Tensor] | None, arguments: dict[str, Any], shape: Sequence[int] | None
) -> tuple[nn.Module, Recipe]:
    kind, name = parsed.kind, parsed.name
    if kind == "cifar" and state is not None:
        arguments = {**families.cifar_arguments(name, state), **arguments}
    if kind == "timm" and shape is not None:
        arguments = {"in_chans": shape[0], **arguments}
    if kind == "torchvision" and parsed.weights is not None:
        model, arguments = families.torchvision_trained(name, parsed.weights, arguments)
    elif kind == "timm" and parsed.weights is not None:
        model = families.timm_trained(name, arguments)
    else:
        model = families.build(kind, name, arguments)
    return model, {"kind": kind, "name": _lasting(name) if kind == "file" else name, "arguments": arguments}


def _lasting(name: str) -> str:
    """A file's factory as it is found from any folder."""
    path, _, factory = name.rpartition(":")
    return f"{Path(path).expanduser().resolve()}:{factory}"


def _categories(parsed: Reference) -> tuple[str, ...]:
    if parsed.kind != "torchvision" or parsed.weights is None:
        return ()
    return tuple(families.torchvision_weights(parsed.name, parsed.weights).meta["categories"])


def _spec(
    parsed: Reference,
    model: nn.Module,
    recipe: Recipe,
    shape: Sequence[int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> InputSpec:
    if shape is not None and (parsed.kind == "file" or (mean is not None and std is not None)):
        return InputSpec(shape=tuple(shape), mean=tuple(mean or [0.0] * shape[0]), std=tuple(std or [1.0] * shape[0]))
    if parsed.kind == "file":
        raise ModelError(f"what does {parsed.name} take? Give shape, such as (3, 224, 224), and perhaps mean and std")
    if parsed.kind == "cifar":
        own = families.cifar_spec(recipe["arguments"])
    elif parsed.kind == "timm":
        own = families.timm_spec(model)
    else:
        own = families.torchvision_spec(parsed.name, parsed.weights)
    return InputSpec(shape=tuple(shape or own.shape), mean=tuple(mean or own.mean), std=tuple(std or own.std))


def _hugging_face(
    name: str, shape: Sequence[int] | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Opened:
    told = InputSpec(shape=tuple(shape), mean=tuple(mean), std=tuple(std)) if shape and mean and std else None
    given = hugging_face.trained(name, told)
    own = given.spec
    spec = InputSpec(shape=tuple(shape or own.shape), mean=tuple(mean or own.mean), std=tuple(std or own.std))
    model = plain_classifier(given.model, torch.zeros(1, *spec.shape))
    num_classes = _count_classes(model, spec, f"hf:{name}")
    return Opened(
        model=model,
        spec=spec,
        recipe={"kind": "hf", "name": name, "arguments": given.arguments},
        num_classes=num_classes,
        class_names=given.class_names if len(given.class_names) == num_classes else None,
        trained=True,
    )


def _bundled(name: str) -> Opened:
    """All bundled nets are CIFAR-style ResNets on Fashion-MNIST, made by recipes/train_static.py."""
    try:
        weights, card = bundled_file(f"{name}.safetensors"), json.loads(bundled_file(f"{name}.json").read_text())
        config = card["config"]
        arguments = {"width": config["width"], "channels": 1, "num_classes": len(FASHION_CLASSES)}
        recipe = {"kind": "cifar", "name": f"resnet{config['depth']}", "arguments": arguments}
    except DynextError as error:
        known = [p.stem for p in bundled_folder().glob("*.safetensors")]
        raise ModelError(f"no model {name!r} ships with dynext; {families.near(name, known)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the card of the bundled model {name} is damaged ({error}); install dynext again") from error
    model = rebuild(recipe)
    load_state(model, read_state(weights), source=str(weights))
    return Opened(
        model=model,
        spec=FASHION_SPEC,
        recipe=recipe,
        num_classes=len(FASHION_CLASSES),
        class_names=FASHION_CLASSES,
        trained=True,
    )


@torch.no_grad()
def _count_classes(model: nn.Module, spec: InputSpec, reference: str) -> int:
    like = next(model.parameters(), torch.empty(()))
    try:
        out = model(torch.zeros(1, *spec.shape).to(like))
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        raise ModelError(
            f"{reference} does not take samples of shape {spec.shape} ({error}); give its own shape"
        ) from error
    out = getattr(out, "logits", out)
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != 1:
        given = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise ModelError(f"{reference} gives {given} for one sample; a classifier gives logits [b k]")
    return out.shape[1]
