"""The tensors of a saved net: written once each, and known to be the ones that were saved."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dynext.errors import ArtifactError


def unshared(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, on the CPU, and the further names of tied ones, ``{further name: name}``."""
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    names: dict[tuple[Any, ...], str] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        if tensor.numel() and key in names:
            shared[name] = names[key]
        else:
            names[key] = name
            tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors, shared


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_weights(path: Path, saved: Mapping[str, Any]) -> dict[str, Tensor]:
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; convert the net again")
    if checksum(path) != saved["sha256"]:
        raise ArtifactError(f"{path} is truncated, damaged or another net's (its checksum differs); convert again")
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ArtifactError(f"{path} is damaged ({error}); convert the net again") from error
    return {**state, **{further: state[name] for further, name in saved["shared"].items()}}
