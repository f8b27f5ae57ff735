"""Small projections as JSON: what an embedding goes through before it is compared with classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from dynext.errors import PolicyError

ProjectionSpec = list[list[Any]]
"""Layer by layer: ``["linear", in, out, bias]``, ``["norm", size, affine]`` (BatchNorm), ``["relu"]``."""


def projection_spec(projection: nn.Module) -> ProjectionSpec:
    """The JSON of a chain of linear layers, BatchNorms and ReLUs, nested or not.

    Raises:
        PolicyError: it holds another kind of layer.
    """
    spec: ProjectionSpec = []
    for layer in projection.modules():
        if isinstance(layer, nn.Linear):
            spec.append(["linear", layer.in_features, layer.out_features, layer.bias is not None])
        elif isinstance(layer, nn.BatchNorm1d):
            spec.append(["norm", layer.num_features, layer.affine])
        elif isinstance(layer, nn.ReLU):
            spec.append(["relu"])
        elif not list(layer.children()) and not isinstance(layer, nn.Identity | nn.Sequential):
            raise PolicyError(f"a projection with {type(layer).__name__}; give linear layers, BatchNorm1d and ReLU")
    return spec


def build_projection(spec: Sequence[Sequence[Any]], width: int) -> tuple[nn.Sequential, int]:
    """An untrained projection from its JSON for embeddings of ``width``, and the width of what it gives.

    Raises:
        PolicyError: a layer that this version does not know, or one that does not fit the one before.
    """
    layers: list[nn.Module] = []
    for kind, *sizes in spec:
        if kind not in ("linear", "norm", "relu") or (sizes and sizes[0] != width):
            given = [kind, *sizes]
            raise PolicyError(f"a projection's layer {given} behind {width} features; this version cannot build it")
        if kind == "linear":
            layers.append(nn.Linear(width, int(sizes[1]), bias=bool(sizes[2])))
            width = int(sizes[1])
        else:
            layers.append(nn.ReLU() if kind == "relu" else nn.BatchNorm1d(width, affine=bool(sizes[1])))
    return nn.Sequential(*layers), width


def layers_in_order(projection: nn.Module) -> list[nn.Module]:
    """The layers that `projection_spec` writes down, to hand weights from one build to another."""
    return [m for m in projection.modules() if isinstance(m, nn.Linear | nn.BatchNorm1d | nn.ReLU)]
