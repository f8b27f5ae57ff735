"""Which channels hang together, across stages and exits: torch-pruning's dependency groups, and a test of our own.

A channel may go if taking it away does what setting it to zero does. That holds for convolutions, BatchNorm and linear
layers, and not where a LayerNorm averages over channels, a shortcut pads them or a reshape counts them: such groups
stay whole. The test is run, not read off the layers' types.

Source: DepGraph, Fang et al., CVPR 2023, arXiv:2301.12900 (the groups).
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from dynext.errors import PlanError, line
from dynext.net.dynamic_net import DynamicNet
from dynext.seeding import generator

TOLERANCE = 1e-3
"""Largest difference, as a share of the largest logit, that removing and setting to zero may show."""


class Part(NamedTuple):
    """What a group does to one layer: which of its output or input channels go."""

    layer: str
    module: nn.Module
    side: str
    channels: tuple[int, ...]


class Whole(nn.Module):
    """A dynamic net as one module with all its answers, so that dependencies reach from stages into exits."""

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
        import torch_pruning  # when it is asked for: it brings its own pruners along

        self.net, self.whole = net, Whole(net).eval()
        wanted = [p.requires_grad for p in net.parameters()]
        x = rows(net)
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")  # about parameters that no module wraps; what is lost shows in the test
            self.whole.requires_grad_(True)
            try:
                self.graph: Any = torch_pruning.DependencyGraph().build_dependency(self.whole, example_inputs=x)
            except Exception as error:  # of many kinds, whatever its tracer stumbles over
                raise PlanError(
                    f"torch-pruning cannot follow this net's channels ({line(error)}); with budget=1, blocks and "
                    f"exits can be left out all the same, and dx.prune.quantize needs no channels"
                ) from error
        for parameter, kept in zip(net.parameters(), wanted, strict=True):
            parameter.requires_grad_(kept)
        self.names = {module: name for name, module in self.whole.named_modules()}

    def layer(self, name: str) -> nn.Module | None:
        return dict(self.whole.named_modules()).get(name)

    def width(self, module: nn.Module) -> int:
        return int(self.graph.get_out_channels(module))

    def roots(self) -> list[str]:
        """One layer for each group of layers that lose channels together, logits and heads' own channels apart."""
        fixed = [m for name, m in self.whole.named_modules() if name.startswith("exits.")] + _last_layers(self.whole)
        found = self.graph.get_all_groups(ignored_layers=fixed, root_module_types=(nn.Conv2d, nn.Conv1d, nn.Linear))
        return [self.names[group[0].dep.target.module] for group in found]

    def group(self, name: str, channels: Sequence[int]) -> Any:
        """torch-pruning's group: all that goes with these output channels of a layer."""
        module = self.layer(name)
        pruner = self.graph.get_pruner_of_module(module)
        return self.graph.get_pruning_group(module, pruner.prune_out_channels, sorted(channels))

    def parts(self, group: Any) -> list[Part]:
        """What a group does to each layer that has a name."""
        found = []
        for dep, channels in group:
            side = "out" if self.graph.is_out_channel_pruning_fn(dep.handler) else "in"
            name = self.names.get(dep.target.module)
            if name is not None:
                found.append(Part(name, dep.target.module, side, tuple(int(c) for c in channels)))
        return found

    def enough(self, group: Any) -> bool:
        """Whether every layer of the group keeps a channel."""
        return bool(self.graph.check_pruning_group(group))


def zero(group: Any, channels: Channels) -> None:
    """Set to zero in place, in every layer of the group, the output channels that would go."""
    for part in channels.parts(group):
        if part.side == "out" or isinstance(part.module, _BatchNorm):
            index = torch.tensor(part.channels)
            turned = isinstance(part.module, _ConvTransposeNd) and part.module.groups == 1
            for name, tensor in part.module.named_parameters(recurse=False):
                tensor.detach().index_fill_(1 if turned and name == "weight" else 0, index.to(tensor.device), 0.0)


Trial = tuple[str, Sequence[int]]
"""A layer's name and the output channels that would go."""


def consistent(net: DynamicNet, trials: Sequence[Trial]) -> str | None:
    """Why removing these channels, all of them, is not what setting them to zero is, or ``None`` where it is.

    ``net`` stays whole.
    """
    zeroed, cut = (Channels(copy.deepcopy(net)) for _ in range(2))
    x = rows(net)
    try:
        # a graph that fails prints itself, which is none of the user's business here
        with redirect_stderr(io.StringIO()), torch.no_grad():
            for name, channels in trials:
                zero(zeroed.group(name, channels), zeroed)
                cut.group(name, channels).prune()
            wanted, found = zeroed.whole(x), cut.whole(x)
    except (RuntimeError, ValueError, IndexError, AttributeError) as error:
        return f"the rest no longer fits ({type(error).__name__})"
    for one, other in zip(wanted, found, strict=True):
        if one.shape != other.shape or not torch.allclose(one, other, rtol=0, atol=TOLERANCE * _scale(one)):
            return "what is left answers otherwise than with these channels at zero"
    return None


def sound(net: DynamicNet, trials: Sequence[Trial]) -> list[Trial]:
    """Those of the trials that are consistent; many are tried at once, and halved where they are not."""
    if not trials or consistent(net, trials) is None:
        return list(trials)
    if len(trials) == 1:
        return []
    middle = len(trials) // 2
    return sound(net, trials[:middle]) + sound(net, trials[middle:])


def _scale(logits: Tensor) -> float:
    return max(float(logits.abs().max()), 1e-6)


def rows(net: DynamicNet, count: int = 2) -> Tensor:
    """Noise for the net to take, always the same."""
    like = next(net.parameters())
    return torch.randn(count, *net.staged.input_shape, generator=generator(0)).to(like)


def _last_layers(whole: Whole) -> list[nn.Module]:
    """Layers whose output are logits: the last linear layer or convolution of the last stage."""
    weighted: list[nn.Module] = [m for m in whole.staged.stages[-1].modules() if isinstance(m, _ConvNd | nn.Linear)]
    return weighted[-1:]
