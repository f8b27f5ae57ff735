"""Multi-scale dense nets for small images: coarse features from the first layer on, and connections past every layer.

An early exit needs coarse features, which other nets have only at their end, and training it changes early layers to
its own advantage, which dense connections let later layers bypass.

Shape legend: l layers, s scales (0 the finest), k classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from dynext.errors import ModelError
from dynext.graph.split import split
from dynext.modules.exits import strided_heads
from dynext.net.attach import attach
from dynext.net.dynamic_net import DynamicNet
from dynext.seeding import seeded

Steps = Literal["even", "linear"]


@dataclass(frozen=True, kw_only=True)
class MSDNetConfig:
    """Sizes of an `MSDNet`; without arguments those published for CIFAR-10, for anytime prediction.

    Raises:
        ModelError: sizes that make no net.
    """

    blocks: int = 7
    """How many classifiers there are."""
    base: int = 4
    """Layers before the first classifier."""
    step: int = 2
    steps: Steps = "even"
    """Layers between two classifiers: ``step`` each (``"even"``), or ``i step + 1`` before the one after the i-th
    (``"linear"``)."""
    num_classes: int = 10
    channels: int = 3
    """Of the input, 1 for gray images."""
    width: int = 16
    """Channels of the first layer, at the finest scale."""
    growth: int = 6
    """Channels that each layer adds, at the finest scale."""
    factors: tuple[int, ...] = (1, 2, 4)
    """One for each scale: multiplies width and growth there, and bounds the bottlenecks."""
    reduction: float = 0.5
    """Share of the channels that stays where a scale is dropped."""
    hidden: int = 128
    """Channels of each classifier's two convolutions."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(self.factors))  # JSON, from which nets are built again, has lists
        counts = (self.blocks, self.base, self.step, self.num_classes, self.channels, self.width, self.hidden)
        if min(*counts, *self.factors) < 1 or self.growth < 2 or self.growth % 2:
            raise ModelError(
                f"blocks {self.blocks}, base {self.base}, step {self.step}, width {self.width}, "
                f"factors {self.factors}, growth {self.growth}, hidden {self.hidden}; give 1 or more of each, and an "
                f"even growth"
            )
        if self.steps not in get_args(Steps) or not 0 < self.reduction <= 1 or len(self.factors) < 2:
            raise ModelError(
                f"steps {self.steps!r}, reduction {self.reduction}, factors {self.factors}; give 'even' or 'linear', "
                f"a share in (0, 1], a factor for each of two scales or more"
            )

    @property
    def ends(self) -> tuple[int, ...]:
        """The layer, from 1, after which each classifier stands."""
        even = self.steps == "even"
        added = [self.base, *(self.step if even else self.step * i + 1 for i in range(1, self.blocks))]
        return tuple(sum(added[: i + 1]) for i in range(self.blocks))

    @property
    def num_scales(self) -> int:
        return len(self.factors)

    def finest(self, layer: int) -> int:
        """The finest scale that is left after a layer (from 1; 0 is the first convolutions)."""
        return 0 if layer == 0 else (layer - 1) // math.ceil(self.ends[-1] / self.num_scales)


def conv(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


def bottleneck(channels_in: int, channels_out: int, factor: int, stride: int = 1) -> nn.Sequential:
    """1x1 to at most ``factor`` times the output's channels, then 3x3."""
    inner = min(channels_in, factor * channels_out)
    return nn.Sequential(conv(channels_in, inner, 1), conv(inner, channels_out, 3, stride))


class Cell(nn.Module):
    """One layer at one scale: its own scale's maps so far, one made of the finer scale's and one made of its own,
    concatenated.
    """

    def __init__(self, own: int, finer: int | None, growth: int, factor: int, finer_factor: int) -> None:
        super().__init__()
        self.down = None if finer is None else bottleneck(finer, growth // 2, finer_factor, stride=2)
        self.same = bottleneck(own, growth if finer is None else growth // 2, factor)

    def forward(self, own: Tensor, finer: Tensor | None) -> Tensor:
        if self.down is None or finer is None:
            return torch.cat([own, self.same(own)], dim=1)
        return torch.cat([own, self.down(finer), self.same(own)], dim=1)


class MSDNet(nn.Module):
    """``[b c h w]`` to the last classifier's logits ``[b k]``; `msdnet` adds the early classifiers.

    The layers are divided into as many equal parts as there are scales: the i-th part lacks the i - 1 finest scales,
    and where a scale is dropped, the channels of the others are reduced (halved by default).

    Source: Huang et al., ICLR 2018, arXiv:1703.09844, section 4 and appendix A. A map is computed when the first
    classifier needs it and not before ("lazy evaluation").
    """

    def __init__(self, config: MSDNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = MSDNetConfig() if config is None else config
        factors, width, last_layer = config.factors, config.width, config.ends[-1]
        first = [conv(config.channels, width * factors[0], 3)]
        first += [conv(width * factors[s - 1], width * factors[s], 3, 2) for s in range(1, config.num_scales)]
        self.first = nn.ModuleList(first)
        self.layers, self.transitions = nn.ModuleList(), nn.ModuleDict()
        for layer in range(1, last_layer + 1):
            finest, finest_before = config.finest(layer), config.finest(layer - 1)
            scales = range(finest, config.num_scales)
            cells = nn.ModuleDict()
            for s in scales:
                finer = width * factors[s - 1] if s and s - 1 >= finest_before else None
                cells[str(s)] = Cell(width * factors[s], finer, config.growth * factors[s], factors[s], factors[s - 1])
            self.layers.append(cells)
            width += config.growth
            if finest > finest_before:
                reduced = math.floor(config.reduction * width)
                shrinking = {str(s): conv(width * factors[s], reduced * factors[s], 1) for s in scales}
                self.transitions[str(layer)] = nn.ModuleDict(shrinking)
                width = reduced
        hidden = config.hidden
        self.classifier = nn.Sequential(
            conv(width * factors[-1], hidden, 3, 2),
            conv(hidden, hidden, 3, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(hidden, config.num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    @property
    def places(self) -> tuple[str, ...]:
        """Names of the places where early classifiers stand: `dx.split`'s ``after``."""
        coarsest = self.config.num_scales - 1
        return tuple(
            f"transitions.{layer}.{coarsest}" if str(layer) in self.transitions else f"layers.{layer - 1}.{coarsest}"
            for layer in self.config.ends[:-1]
        )

    def forward(self, x: Tensor) -> Tensor:
        maps: dict[tuple[int, int], Tensor] = {}
        for layer in self.config.ends:
            coarse = self._map(x, layer, self.config.num_scales - 1, maps)
        return self.classifier(coarse)

    def _map(self, x: Tensor, layer: int, s: int, maps: dict[tuple[int, int], Tensor]) -> Tensor:
        """The map of one layer at one scale; ``maps`` holds those computed so far, and gets what this one needs."""
        if (layer, s) in maps:
            return maps[layer, s]
        if layer == 0:
            out = self.first[s](x if s == 0 else self._map(x, 0, s - 1, maps))
        else:
            cell = cast(nn.ModuleDict, self.layers[layer - 1])[str(s)]
            own = self._map(x, layer - 1, s, maps)
            out = cell(own, None if cell.down is None else self._map(x, layer - 1, s - 1, maps))
            if str(layer) in self.transitions:
                out = cast(nn.ModuleDict, self.transitions[str(layer)])[str(s)](out)
        maps[layer, s] = out
        return out


CONFIGURATIONS = {
    "anytime": MSDNetConfig(),
    "budgeted": MSDNetConfig(blocks=5, base=1, step=1, steps="linear"),
}
"""As published for CIFAR: classifiers evenly spaced, or ever further apart."""


def msdnet(
    configuration: Literal["anytime", "budgeted"] = "anytime", *, side: int = 32, seed: int = 0, **changes: Any
) -> DynamicNet:
    """An untrained `MSDNet` with all its classifiers: a `DynamicNet` like any other.

    Args:
        side: of the (square) images, 28 for Fashion-MNIST.
        changes: fields of `MSDNetConfig`, such as ``channels=1`` or ``num_classes=100``.

    Raises:
        ModelError: no such configuration, or sizes that make no net.
    """
    if configuration not in CONFIGURATIONS:
        raise ModelError(f"no MSDNet configuration {configuration!r}; give {' or '.join(CONFIGURATIONS)}")
    config = replace(CONFIGURATIONS[configuration], **changes)
    with seeded(seed):
        net = MSDNet(config)
    staged = split(net.eval(), torch.zeros(1, config.channels, side, side), after=net.places)
    return attach(staged, strided_heads(config.num_classes, hidden=config.hidden), seed=seed)
