"""Multi-scale dense nets for small images: coarse features from the first layer on, early layers by-passed.

An early exit needs coarse features, which usual nets have at their end only, and it bends early layers to its own ends,
which dense connections let later ones by-pass.

Shape legend: l layers, s scales (0 the finest), k classes.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from dynext.errors import ModelError
from dynext.graph.split import split
from dynext.modules.exits import strided_heads
from dynext.net.attach import attach
from dynext.net.dynamic_net import DynamicNet
from dynext.seeding import seeded

Steps = Literal["even", "linear"]


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
    """One layer at one scale: all that its own scale had, then what it makes of the finer scale, then of its own."""

    def __init__(self, own: int, finer: int | None, growth: int, factor: int, finer_factor: int) -> None:
        super().__init__()
        self.down = None if finer is None else bottleneck(finer, growth // 2, finer_factor, stride=2)
        self.same = bottleneck(own, growth if finer is None else growth // 2, factor)

    def forward(self, own: Tensor, finer: Tensor | None) -> Tensor:
        if self.down is None or finer is None:
            return torch.cat([own, self.same(own)], dim=1)
        return torch.cat([own, self.down(finer), self.same(own)], dim=1)


class MSDNet(nn.Module):
    """``[b c h w]`` to the last classifier's logits ``[b k]``; `msdnet` puts the early classifiers on.

    The scales are cut down evenly: in the i-th third of the layers the i - 1 finest ones are gone, and where one goes
    the channels of the others are halved.

    Args:
        blocks: classifiers; ``base`` layers before the first one.
        step, steps: layers between two classifiers: ``step`` each (``"even"``), or ``i step + 1`` before the one after
            the i-th (``"linear"``).
        channels: of the input, 1 for gray images.
        width, growth: channels of the first layer and of what each layer adds, at the finest scale.
        factors: of each scale, multiply both and bound the bottlenecks.
        reduction: share of the channels kept where a scale goes.
        hidden: channels of each classifier's two convolutions, 128 as published for CIFAR.

    Source: Huang et al., ICLR 2018, arXiv:1703.09844, section 4 and appendix A; defaults are its CIFAR nets'. A map is
    computed when the first classifier needs it and not before ("lazy evaluation").
    """

    def __init__(
        self,
        blocks: int = 7,
        base: int = 4,
        step: int = 2,
        steps: Steps = "even",
        num_classes: int = 10,
        channels: int = 3,
        width: int = 16,
        growth: int = 6,
        factors: tuple[int, ...] = (1, 2, 4),
        reduction: float = 0.5,
        hidden: int = 128,
    ) -> None:
        super().__init__()
        factors = tuple(factors)
        if min(blocks, base, step, num_classes, channels, width, hidden, *factors) < 1 or growth < 2 or growth % 2:
            raise ModelError(
                f"blocks {blocks}, base {base}, step {step}, width {width}, factors {factors}, growth {growth}, "
                f"hidden {hidden}; give 1 or more of each, and an even growth"
            )
        if steps not in ("even", "linear") or not 0 < reduction <= 1 or len(factors) < 2:
            raise ModelError(
                f"steps {steps!r}, reduction {reduction}, factors {factors}; give 'even' or 'linear', a share in "
                f"(0, 1], a factor for each of two scales or more"
            )
        added = [base, *(step if steps == "even" else step * i + 1 for i in range(1, blocks))]
        self.ends = tuple(sum(added[: i + 1]) for i in range(blocks))
        """The layer, from 1, after which each classifier stands."""
        self.num_scales = len(factors)
        self._interval = math.ceil(self.ends[-1] / self.num_scales)
        first = [conv(channels, width * factors[0], 3)]
        first += [conv(width * factors[s - 1], width * factors[s], 3, 2) for s in range(1, self.num_scales)]
        self.first = nn.ModuleList(first)
        self.layers, self.transitions = nn.ModuleList(), nn.ModuleDict()
        for layer in range(1, self.ends[-1] + 1):
            cells = nn.ModuleDict()
            for s in range(self.finest(layer), self.num_scales):
                finer = width * factors[s - 1] if s and s - 1 >= self.finest(layer - 1) else None
                cells[str(s)] = Cell(width * factors[s], finer, growth * factors[s], factors[s], factors[s - 1])
            self.layers.append(cells)
            width += growth
            if self.finest(layer) > self.finest(layer - 1):
                kept = math.floor(reduction * width)
                shrunk = {str(s): conv(width * factors[s], kept * factors[s], 1) for s in self._scales(layer)}
                self.transitions[str(layer)] = nn.ModuleDict(shrunk)
                width = kept
        embedder = [conv(width * factors[-1], hidden, 3, 2), conv(hidden, hidden, 3, 2)]
        self.classifier = nn.Sequential(
            *embedder, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(hidden, num_classes)
        )
        self.num_classes, self.channels, self.hidden = num_classes, channels, hidden
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def finest(self, layer: int) -> int:
        """The finest scale that is left after a layer (from 1; 0 is the first convolutions)."""
        return 0 if layer == 0 else (layer - 1) // self._interval

    def _scales(self, layer: int) -> range:
        return range(self.finest(layer), self.num_scales)

    @property
    def places(self) -> tuple[str, ...]:
        """Names of the places where early classifiers stand: `dx.split`'s ``after``."""
        coarsest = self.num_scales - 1
        found = []
        for layer in self.ends[:-1]:
            part = "transitions" if str(layer) in self.transitions else "layers"
            found.append(f"{part}.{layer if part == 'transitions' else layer - 1}.{coarsest}")
        return tuple(found)

    def forward(self, x: Tensor) -> Tensor:
        made: dict[tuple[int, int], Tensor] = {}
        for layer in self.ends:
            coarse = self._map(x, layer, self.num_scales - 1, made)
        return self.classifier(coarse)

    def _map(self, x: Tensor, layer: int, s: int, made: dict[tuple[int, int], Tensor]) -> Tensor:
        """The map of one layer at one scale, from those before it, which are made if they are not there yet."""
        if (layer, s) in made:
            return made[layer, s]
        if layer == 0:
            out = self.first[s](x if s == 0 else self._map(x, 0, s - 1, made))
        else:
            cell = self.layers[layer - 1][str(s)]  # type: ignore[index]  # ModuleDicts in a ModuleList
            own = self._map(x, layer - 1, s, made)
            out = cell(own, None if cell.down is None else self._map(x, layer - 1, s - 1, made))
            if str(layer) in self.transitions:
                out = self.transitions[str(layer)][str(s)](out)  # type: ignore[index]
        made[layer, s] = out
        return out


CONFIGURATIONS = {
    "anytime": {"blocks": 7, "base": 4, "step": 2, "steps": "even"},
    "budgeted": {"blocks": 5, "base": 1, "step": 1, "steps": "linear"},
}
"""As published for CIFAR: classifiers evenly spaced, or ever further apart."""


def msdnet(
    configuration: Literal["anytime", "budgeted"] = "anytime", *, side: int = 32, seed: int = 0, **changes: object
) -> DynamicNet:
    """An untrained `MSDNet` with all its classifiers: a `DynamicNet` like any other.

    Args:
        side: of the (square) images, 28 for Fashion-MNIST.
        changes: of `MSDNet`'s arguments, such as ``channels=1`` or ``num_classes=100``.

    Raises:
        ModelError: no such configuration, or sizes that make no net.
    """
    if configuration not in CONFIGURATIONS:
        raise ModelError(f"no MSDNet configuration {configuration!r}; give {' or '.join(CONFIGURATIONS)}")
    with seeded(seed):
        net = MSDNet(**{**CONFIGURATIONS[configuration], **changes})  # type: ignore[arg-type]
    staged = split(net.eval(), torch.zeros(1, net.channels, side, side), after=net.places)
    return attach(staged, strided_heads(net.num_classes, hidden=net.hidden), seed=seed)
