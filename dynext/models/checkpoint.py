"""Reading checkpoints: tensors only, never code, and messages that help where a checkpoint does not fit the model."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dynext.errors import ModelError

SUFFIXES = (".safetensors", ".pt", ".pth", ".th")
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts keep the weights, beside epochs and optimizers."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and Lightning put before every name."""
_LISTED = 4


def read_state(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by name, taken out of the dictionary that training scripts put around them.

    Raises:
        ModelError: no such file, another kind of file, a damaged one, or one that holds code instead of tensors.
            Such code is never run.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ModelError(f"{path} is no checkpoint by its name; give a file ending in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ModelError(f"there is no checkpoint {path}; name an existing file")
    state = _safetensors(path) if path.suffix == ".safetensors" else _unpickled(path)
    while isinstance(state, Mapping) and not _holds_tensors(state) and any(key in state for key in WRAPPERS):
        state = state[next(key for key in WRAPPERS if key in state)]
    if not isinstance(state, Mapping) or not state or not _holds_tensors(state):
        raise ModelError(f"{path} holds {_described(state)}, not tensors by name; save model.state_dict()")
    foreign = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if foreign:
        raise ModelError(f"{path} holds more than tensors ({_some(foreign)}); save model.state_dict()")
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ModelError(f"{path} holds NaN or infinite weights ({_some(broken)}); take an earlier checkpoint")
    return dict(state)


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged or no safetensors file ({error}); fetch it again") from error


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} is damaged or holds Python objects instead of tensors; dynext never runs what is in a checkpoint. "
            f"Where you trust it, load it yourself and save model.state_dict()"
        ) from error
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ModelError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); fetch it again, or save "
            f"model.state_dict() instead of the whole model"
        ) from error


def _holds_tensors(content: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in content.values())


def _described(content: object) -> str:
    if isinstance(content, Mapping):
        return f"the keys {_some([str(key) for key in content])}" if content else "nothing"
    return f"a {type(content).__name__}"


def without_prefix(state: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """``state`` with the wrappers' common prefix taken off its names, unless the net's own names have it."""
    bare = dict(state)
    for _ in range(len(PREFIXES)):
        for prefix in PREFIXES:
            own = any(name.startswith(prefix) for name in expected)
            if not own and bare and all(name.startswith(prefix) for name in bare):
                bare = {name.removeprefix(prefix): value for name, value in bare.items()}
    return bare


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Put ``state`` into ``model``, all of it or nothing.

    Raises:
        ModelError: names or shapes differ; the message lists a few. The model is then as it was.
    """
    own = model.state_dict()
    given = without_prefix(state, own)
    for name in own.keys() - given.keys():
        if name.endswith("num_batches_tracked"):  # checkpoints from before torch 0.4.1 have none
            given[name] = own[name]
    faults = {
        "missing": sorted(own.keys() - given.keys()),
        "unexpected": sorted(given.keys() - own.keys()),
        "of another shape": [
            f"{name} {list(given[name].shape)} for {list(own[name].shape)}"
            for name in own
            if name in given and given[name].shape != own[name].shape
        ],
    }
    listed = "; ".join(f"{len(names)} {fault}: {_some(names)}" for fault, names in faults.items() if names)
    if listed:
        raise ModelError(
            f"{source} does not fit the model ({listed}); check depth, width and number of classes (num_classes)"
        )
    model.load_state_dict(given)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
