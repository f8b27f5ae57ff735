"""Which channels depend on each other, across stages and exits: torch-pruning's groups.

Source: DepGraph, Fang et al., CVPR 2023, arXiv:2301.12900.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from dynext.errors import PlanError, line
from dynext.net.dynamic_net import DynamicNet
from dynext.seeding import generator


class LayerChannels(NamedTuple):
    """Channels that one layer of a group loses: of its output (``side="out"``) or of its input (``"in"``)."""

    layer: str
    module: nn.Module
    side: Literal["out", "in"]
    channels: tuple[int, ...]


class AllExits(nn.Module):
    """A dynamic net as one module that gives every exit's logits, so that dependencies reach from stages into exits."""

    def __init__(self, net: DynamicNet) -> None:
        super().__init__()
        self.staged, self.exits = net.staged, net.exits
        self._net = [net]  # not registered twice

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        taps, final = self._net[0].taps(x)
        return (*(exit(tap) for exit, tap in zip(self._net[0].exits, taps, strict=True)), final)


class Channels:
    """The channels of one net, which is not changed: groups keep the numbers that its channels have now.

    Layers are named as in the dynamic net: ``"staged.stages.1.body.conv1"``, ``"exits.0.embedder.0"``.

    Raises:
        PlanError: a net whose channels cannot be followed.
    """

    def __init__(self, net: DynamicNet) -> None:
        import torch_pruning  # only here: its import takes long

        self.net, self.module = net, AllExits(net).eval()
        wanted = [p.requires_grad for p in net.parameters()]
        x = noise(net)
        with warnings.catch_warnings(), torch.enable_grad():
            # about parameters outside of modules; a channel lost there shows as a `dynext.prune.cutting.inconsistency`
            warnings.simplefilter("ignore")
            self.module.requires_grad_(True)
            try:
                self.graph: Any = torch_pruning.DependencyGraph().build_dependency(self.module, example_inputs=x)
            except Exception as error:  # its tracer raises many kinds
                raise PlanError(
                    f"torch-pruning cannot follow this net's channels ({line(error)}); with budget=1, blocks and "
                    f"exits can be left out all the same, and dx.prune.quantize needs no channels"
                ) from error
        for parameter, needed in zip(net.parameters(), wanted, strict=True):
            parameter.requires_grad_(needed)
        self.modules = dict(self.module.named_modules())
        self.names = {module: name for name, module in self.modules.items()}
        self.groups: dict[tuple[str, tuple[int, ...]], Any] = {}
        self.computed = frozenset(name for module, name in self.names.items() if _is_computed(module))
        """Layers whose weight is computed from other parameters; they keep their channels."""

    def layer(self, name: str) -> nn.Module | None:
        return self.modules.get(name)

    def known(self, name: str) -> nn.Module:
        """A layer that is there, such as `roots` names."""
        module = self.layer(name)
        assert module is not None  # noqa: S101
        return module

    def width(self, module: nn.Module) -> int:
        return int(self.graph.get_out_channels(module))

    def roots(self) -> list[str]:
        """One layer of each group of layers that lose channels together; exits' layers and the logits are left out."""
        fixed = [m for name, m in self.module.named_modules() if name.startswith("exits.")] + _last_layers(self.module)
        groups = self.graph.get_all_groups(ignored_layers=fixed, root_module_types=(nn.Conv2d, nn.Conv1d, nn.Linear))
        return [self.names[group[0].dep.target.module] for group in groups if not self.held(group)]

    def group(self, name: str, channels: Sequence[int]) -> Any:
        """torch-pruning's group: all that must be removed together with these output channels of a layer."""
        key = (name, tuple(sorted(channels)))
        if key not in self.groups:  # the graph stays as it is, and going through it takes long
            module = self.layer(name)
            pruner = self.graph.get_pruner_of_module(module)
            self.groups[key] = self.graph.get_pruning_group(module, pruner.prune_out_channels, list(key[1]))
        return self.groups[key]

    def members(self, group: Any) -> list[LayerChannels]:
        """The channels that a group takes from each layer that has a name."""
        members = []
        for dep, channels in group:
            side: Literal["out", "in"] = "out" if self.graph.is_out_channel_pruning_fn(dep.handler) else "in"
            name = self.names.get(dep.target.module)
            if name is not None:
                members.append(LayerChannels(name, dep.target.module, side, tuple(int(c) for c in channels)))
        return members

    def held(self, group: Any) -> list[str]:
        """Layers of the group that keep their channels: their weights are computed (`computed`)."""
        return list(dict.fromkeys(m.layer for m in self.members(group) if m.layer in self.computed))

    def coupled(self, layer: str, chosen: Sequence[int]) -> tuple[str, ...]:
        """Every layer whose output loses channels together with these, the layer itself included."""
        members = self.members(self.group(layer, chosen))
        return tuple(dict.fromkeys(member.layer for member in members if member.side == "out"))

    def owned(self, layer: str, chosen: Sequence[int]) -> set[tuple[str, int]]:
        """What a cut decides over: all output channels of its layer, and those that it takes from other layers.

        Layers may share a BatchNorm behind a concatenation, since each has channels of its own there.
        """
        taken = [m for m in self.members(self.group(layer, chosen)) if m.side == "out"]
        own = {(layer, c) for c in range(self.width(self.known(layer)))}
        return own | {(member.layer, c) for member in taken for c in member.channels}

    def path(self, module: nn.Module | nn.Parameter) -> str | None:
        """Where a layer, or a parameter that is in none, stands in the net."""
        if isinstance(module, nn.Parameter):
            name: str | None = self.graph._param_to_name.get(module)
            return name
        return self.names.get(module)

    def enough(self, group: Any) -> bool:
        """Whether every layer of the group keeps at least one channel."""
        return bool(self.graph.check_pruning_group(group))


def bake(layers: Sequence[str]) -> str:
    """What to do about layers whose weights are computed."""
    rest = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
    return (
        f"the weights of {', '.join(layers[:3])}{rest} are computed from other parameters (weight_norm, spectral_norm, "
        f"a mask), so these layers keep their channels; make them plain before dx.split, with torch.nn.utils."
        f"parametrize.remove_parametrizations(layer, 'weight'), or remove_weight_norm, remove_spectral_norm and "
        f"prune.remove for the older forms"
    )


def _is_computed(module: nn.Module) -> bool:
    """Whether a weight or bias is no parameter of the layer but made anew in each call, by a parametrization or a hook.

    Cutting such a tensor would be undone by the next call, or refused by torch.
    """
    if parametrize.is_parametrized(module):
        return True
    tensors = (name for name in ("weight", "bias") if isinstance(getattr(module, name, None), Tensor))
    known = module._parameters.keys() | module._buffers.keys()
    return any(name not in known for name in tensors)


def noise(net: DynamicNet, count: int = 2) -> Tensor:
    """Random samples ``[b ...]`` of the shape that the net expects, always the same."""
    like = next(net.parameters())
    return torch.randn(count, *net.staged.input_shape, generator=generator(0)).to(like)


def _last_layers(net: AllExits) -> list[nn.Module]:
    """Layers whose output is the logits: the last linear layer or convolution of the last stage."""
    weighted: list[nn.Module] = [m for m in net.staged.stages[-1].modules() if isinstance(m, _ConvNd | nn.Linear)]
    return weighted[-1:]
