"""Which channels depend on each other, across stages and exits: torch-pruning's groups, and a test of our own.

A channel may be removed if that changes the net's answers exactly as setting it to zero does. This holds for
convolutions, BatchNorm and linear layers, and not where a LayerNorm averages over channels, a shortcut pads them or a
reshape counts them: such groups stay whole. The test runs the net both ways, whatever its layers' types.

Source: DepGraph, Fang et al., CVPR 2023, arXiv:2301.12900 (the groups).
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from dynext.errors import PlanError, line
from dynext.net.dynamic_net import DynamicNet
from dynext.seeding import generator

TOLERANCE = 1e-3
"""Largest difference between removing and setting to zero that is allowed, as a share of the largest logit."""


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
    """The channels of one net; what is cut here changes that very net.

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
            warnings.simplefilter(
                "ignore"
            )  # about parameters outside of modules; a channel lost there shows as an `inconsistency`
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
        self.names = {module: name for name, module in self.module.named_modules()}

    def layer(self, name: str) -> nn.Module | None:
        return dict(self.module.named_modules()).get(name)

    def width(self, module: nn.Module) -> int:
        return int(self.graph.get_out_channels(module))

    def roots(self) -> list[str]:
        """One layer of each group of layers that lose channels together; exits' layers and the logits are left out."""
        fixed = [m for name, m in self.module.named_modules() if name.startswith("exits.")] + _last_layers(self.module)
        groups = self.graph.get_all_groups(ignored_layers=fixed, root_module_types=(nn.Conv2d, nn.Conv1d, nn.Linear))
        return [self.names[group[0].dep.target.module] for group in groups]

    def group(self, name: str, channels: Sequence[int]) -> Any:
        """torch-pruning's group: all that must be removed together with these output channels of a layer."""
        module = self.layer(name)
        pruner = self.graph.get_pruner_of_module(module)
        return self.graph.get_pruning_group(module, pruner.prune_out_channels, sorted(channels))

    def members(self, group: Any) -> list[LayerChannels]:
        """The channels that a group takes from each layer that has a name."""
        members = []
        for dep, channels in group:
            side: Literal["out", "in"] = "out" if self.graph.is_out_channel_pruning_fn(dep.handler) else "in"
            name = self.names.get(dep.target.module)
            if name is not None:
                members.append(LayerChannels(name, dep.target.module, side, tuple(int(c) for c in channels)))
        return members

    def enough(self, group: Any) -> bool:
        """Whether every layer of the group keeps at least one channel."""
        return bool(self.graph.check_pruning_group(group))


def zero(group: Any, channels: Channels) -> None:
    """Set to zero in place, in every layer of the group, the output channels that would be removed."""
    for member in channels.members(group):
        if member.side == "out" or isinstance(member.module, _BatchNorm):
            index = torch.tensor(member.channels)
            transposed = isinstance(member.module, _ConvTransposeNd) and member.module.groups == 1
            for name, tensor in member.module.named_parameters(recurse=False):
                dim = 1 if transposed and name == "weight" else 0
                tensor.detach().index_fill_(dim, index.to(tensor.device), 0.0)


Trial = tuple[str, Sequence[int]]
"""A layer's name and the output channels that would be removed."""


def inconsistency(net: DynamicNet, trials: Sequence[Trial]) -> str | None:
    """How removing all of these channels differs from setting them to zero; ``None`` where it does not.

    ``net`` is not changed.
    """
    zeroed, cut = (Channels(copy.deepcopy(net)) for _ in range(2))
    x = noise(net)
    try:
        # a traced graph that fails prints itself, which would only confuse the user
        with redirect_stderr(io.StringIO()), torch.no_grad():
            for name, channels in trials:
                zero(zeroed.group(name, channels), zeroed)
                cut.group(name, channels).prune()
            zeroed_e, cut_e = zeroed.module(x), cut.module(x)
    except (RuntimeError, ValueError, IndexError, AttributeError) as error:
        return f"the rest no longer fits ({type(error).__name__})"
    for wanted, logits in zip(zeroed_e, cut_e, strict=True):
        scale = max(float(wanted.abs().max()), 1e-6)
        if wanted.shape != logits.shape or not torch.allclose(wanted, logits, rtol=0, atol=TOLERANCE * scale):
            return "what is left answers otherwise than with these channels at zero"
    return None


def sound(net: DynamicNet, trials: Sequence[Trial]) -> list[Trial]:
    """Those of the trials that are consistent: all are tried at once, and halved where they fail."""
    if not trials or inconsistency(net, trials) is None:
        return list(trials)
    if len(trials) == 1:
        return []
    middle = len(trials) // 2
    return sound(net, trials[:middle]) + sound(net, trials[middle:])


def noise(net: DynamicNet, count: int = 2) -> Tensor:
    """Random samples ``[b ...]`` of the shape that the net expects, always the same."""
    like = next(net.parameters())
    return torch.randn(count, *net.staged.input_shape, generator=generator(0)).to(like)


def _last_layers(net: AllExits) -> list[nn.Module]:
    """Layers whose output is the logits: the last linear layer or convolution of the last stage."""
    weighted: list[nn.Module] = [m for m in net.staged.stages[-1].modules() if isinstance(m, _ConvNd | nn.Linear)]
    return weighted[-1:]
