"""Nets with gates that are not all of one mind, for the tests of several rooms."""

from __future__ import annotations

import torch
from zoo import NETS

import dynext as dx
from dynext.modules.gates import GateSpec

WITH_BLOCKS = ("residual", "vit_like", "convnext_like", "root_tensors", "in_place_pre_activation")
LEARNED: dict[str, GateSpec] = {
    "feedforward": dx.gates.feedforward_gates("I", openness=0.0),
    "recurrent": dx.gates.recurrent_gates(openness=0.0),
    "policy": dx.gates.policy_gates(width=4, openness=0.0),
}


def gated_net(name: str = "residual", kind: str = "recurrent", *, exits: bool = True, seed: int = 0) -> dx.DynamicNet:
    """A net of the zoo with an exit in its middle and gates of a kind, untrained."""
    model, example = NETS[name]()
    staged = dx.split(model, example, granularity="block")
    at = [staged.skippable[1]] if exits and staged.skippable[1] < len(staged.stages) - 1 else []
    net = dx.attach(staged, dx.default_heads(staged.num_classes), at=at, seed=seed)
    net = dx.attach_gates(net, LEARNED[kind], seed=seed)
    if kind == "recurrent":  # an untrained LSTM says nearly the same of every sample
        with torch.no_grad():
            for parameter in net.gates.body.parameters():
                parameter.mul_(4)
    return net


def samples_for(net: dx.DynamicNet, n: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *net.staged.input_shape, generator=torch.Generator().manual_seed(seed))


def source_of(x: torch.Tensor, y: torch.Tensor | None = None) -> dx.data.Samples:
    channels = x.shape[1]
    spec = dx.InputSpec(shape=tuple(x.shape[1:]), mean=(0.0,) * channels, std=(1.0,) * channels)
    return dx.data.Samples(pixels=x, y=y, spec=spec)
