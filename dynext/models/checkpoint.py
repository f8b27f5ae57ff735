"""Reading checkpoints: tensors only, never code, whatever the file is called and whatever lies around the weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dynext.errors import ModelError
from dynext.models.baked import baked
from dynext.models.matching import Match, match
from dynext.models.pickled import unpickled
from dynext.models.unwrap import Weights, named_tensors, some

log = logging.getLogger("dynext")

_LENGTH = 8
"""A safetensors file begins with so many bytes of a length, then JSON."""
_IN_FOLDER = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
"""The weights in a folder of Hugging Face's."""


def read_state(path: Path | str) -> Weights:
    """The tensors of a checkpoint file by name, taken out of the dictionary that training scripts put around them.

    What kind of file it is, its content says and not its name: ``.ckpt``, ``.pth.tar`` and ``.bin`` are read as well. A
    folder of Hugging Face's, or the index of weights in several files, is read as one. Where the average of the weights
    over training (EMA) is kept beside them, that is taken.

    Raises:
        ModelError: no such file, another kind of file, a damaged one, or one that holds code instead of tensors.
            Such code is never run.
    """
    path = Path(path)
    if path.is_dir():
        path = next((path / name for name in _IN_FOLDER if (path / name).is_file()), path)
    if not path.is_file():
        what = "holds no model.safetensors" if path.is_dir() else "is no file"
        raise ModelError(f"there is no checkpoint {path} (it {what}); name an existing file")
    content = _content(path)
    state = named_tensors(content)
    if not state:
        raise ModelError(f"{path} holds {_described(content)}, not tensors by name; save model.state_dict()")
    return state


def _content(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(_LENGTH + 1)
    if path.name.endswith(".index.json"):
        return _sharded(path)
    if path.suffix == ".safetensors" or (len(start) > _LENGTH and start[_LENGTH:] == b"{" and start[:2] != b"PK"):
        return _safetensors(path)
    return unpickled(path)


def _safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged or no safetensors file ({error}); fetch it again") from error


def _sharded(path: Path) -> Any:
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise ValueError("it names files elsewhere")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is no index of weights ({error}); fetch it again, or name one file") from error
    return {name: tensor for shard in names for name, tensor in read_state(path.with_name(shard)).items()}


def _described(content: object) -> str:
    if isinstance(content, Mapping):
        return f"the keys {some([str(key) for key in content])}" if content else "nothing"
    return f"a {type(content).__name__}"


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Put ``state`` into ``model``, all of it or nothing; the logger ``dynext`` says in a line what was changed for it.

    Prefixes that wrappers or a larger net put before the names come off, weights kept in parts are put together, and
    what belongs to something else (a loss, a counter) is left out.

    Raises:
        ModelError: a tensor of the model is missing, has another shape or is not finite, or the checkpoint has layers
            that the model has not; the message lists a few. The model is then as it was.
    """
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    whole, made = baked(state, own)
    try:
        matched = match(whole, own)
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from error
    for name, tied in _tied(model, own).items():
        matched.taken.setdefault(name, matched.taken.get(tied, own[name]))
    _check_fit(matched, own, source)
    _check_finite(matched.taken, own, source)
    notes = [*getattr(state, "notes", ()), *([f"put together {some(made)}"] if made else []), *matched.notes()]
    model.load_state_dict(matched.taken, strict=False)  # what it lacks was looked at above
    if notes:
        log.warning("%s: %s", source, "; ".join(notes))


def _tied(model: nn.Module, own: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of tensors that are also another name's; files keep such a tensor once."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        if name in own:
            other = first.setdefault(id(tensor), name)
            if other != name:
                tied |= {name: other, other: name}
    return tied


def _check_fit(matched: Match, own: Mapping[str, Tensor], source: str) -> None:
    taken = matched.taken
    misfits = [name for name in own if name in taken and not _fits(taken[name], own[name])]
    faults = {
        "missing": matched.missing,
        "unexpected": matched.unexpected,
        "of another shape": [
            f"{name} {_shape(taken[name], own[name])} for {_shape(own[name], taken[name])}" for name in misfits
        ],
    }
    listed = "; ".join(f"{len(names)} {fault}: {some(names)}" for fault, names in faults.items() if names)
    if listed:
        heads = {(len(taken[name]), len(own[name])) for name in misfits if taken[name].ndim and own[name].ndim}
        only = not matched.missing and not matched.unexpected and len(heads) == 1 and len(misfits) <= 2
        told = "the checkpoint is for {} classes, the model for {} (num_classes)".format(*heads.pop()) if only else ""
        raise ModelError(
            f"{source} does not fit the model ({listed}); check depth, width and number of classes (num_classes)"
            if not only
            else f"{source} does not fit the model ({listed}); {told}"
        )


def _fits(given: Tensor, wanted: Tensor) -> bool:
    """Whole numbers in place of weights are those of a quantized net, which mean nothing without their scales."""
    whole = wanted.is_floating_point() and not (given.is_floating_point() or given.is_complex())
    return given.shape == wanted.shape and not whole


def _shape(tensor: Tensor, other: Tensor) -> str:
    kind = "" if tensor.shape != other.shape else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"{list(tensor.shape)}{kind}"


def _check_finite(taken: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> None:
    broken = [
        name
        for name, value in taken.items()
        if value.is_floating_point() and not value.isfinite().all() and own[name].isfinite().all()  # masks hold -inf
    ]
    if broken:
        raise ModelError(f"{source} holds NaN or infinite weights ({some(broken)}); take an earlier checkpoint")
