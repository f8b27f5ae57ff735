"""A small dynamic net and what it is saved with."""

import torch

from dynext.graph.split import split
from dynext.models.catalog import open_model
from dynext.modules.exits import default_heads
from dynext.net.attach import attach
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.policy import Policy
from dynext.types import InputSpec

CIFAR = {"kind": "cifar", "name": "resnet8", "arguments": {"width": 4}}
SPEC = InputSpec(shape=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)


def dynamic(seed: int = 0, granularity: str = "stage") -> DynamicNet:
    model = open_model("cifar:resnet8", arguments={"width": 4}).model
    net = attach(
        split(model, torch.zeros(1, *SPEC.shape), ["layer1", "layer2"], granularity=granularity), default_heads(10)
    )
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # every tensor differs from a fresh net's, statistics included
        for tensor in net.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape, generator=draw).to(tensor) + 0.1)
    return net.eval()


def half(net: DynamicNet) -> Policy:
    return Policy(threshold_e=(*[0.2] * (net.num_exits - 1), 0.0), temperature_e=(1.5,) * net.num_exits, note="by hand")
