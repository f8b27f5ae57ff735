"""Compact static nets in CIFAR form: the alternatives that a dynamic net has to beat, and small nets for exits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynext.errors import ModelError


class Fire(nn.Module):
    """A 1x1 convolution to few channels, then a 1x1 and a 3x3 convolution of these, concatenated."""

    def __init__(self, channels_in: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = _conv(channels_in, squeeze, 1)
        self.expand1x1 = _conv(squeeze, expand, 1)
        self.expand3x3 = _conv(squeeze, expand, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1)


class SqueezeNet(nn.Module):
    """``[b c h w]`` to logits ``[b k]``.

    Source: Iandola et al. 2016, arXiv:1602.07360, version 1.1. Ours neither strides nor pools before the first fire
    (so 32 pixels a side end as 8), and has BatchNorm instead of biases.
    """

    def __init__(self, num_classes: int = 10, channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        _check(num_classes, channels, width)
        c = [_even(size * width) for size in (64, 128, 256, 384, 512)]
        q = [_even(size * width) for size in (16, 32, 48, 64)]
        self.stem = _conv(channels, c[0], 3)
        self.fire1 = Fire(c[0], q[0], c[1] // 2)
        self.fire2 = Fire(c[1], q[0], c[1] // 2)
        self.fire3 = Fire(c[1], q[1], c[2] // 2)
        self.fire4 = Fire(c[2], q[1], c[2] // 2)
        self.fire5 = Fire(c[2], q[2], c[3] // 2)
        self.fire6 = Fire(c[3], q[2], c[3] // 2)
        self.fire7 = Fire(c[3], q[3], c[4] // 2)
        self.fire8 = Fire(c[4], q[3], c[4] // 2)
        self.pool = nn.MaxPool2d(2)
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(c[4], num_classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.fire2(self.fire1(self.stem(x))))
        x = self.pool(self.fire4(self.fire3(x)))
        return self.classifier(self.fire8(self.fire7(self.fire6(self.fire5(x)))))


class InvertedResidual(nn.Module):
    """Wide inside, narrow at both ends, depthwise in the middle; with an identity shortcut where the shapes agree."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = channels_in * expand
        self.carries = stride == 1 and channels_in == channels_out
        widen = [] if expand == 1 else [_conv(channels_in, inner, 1, relu6=True)]
        self.body = nn.Sequential(
            *widen,
            _conv(inner, inner, 3, stride, groups=inner, relu6=True),
            nn.Conv2d(inner, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.carries else self.body(x)


SEQUENCES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, number of blocks and first stride: the rows of the paper's table, one a sequence of blocks."""


class MobileNetV2(nn.Module):
    """``[b c h w]`` to logits ``[b k]``.

    Source: Sandler et al., CVPR 2018, arXiv:1801.04381, table 2. Ours strides in three places less (the stem and the
    first two sequences that do), as is usual for images of 32 pixels a side.
    """

    def __init__(self, num_classes: int = 10, channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        _check(num_classes, channels, width)
        previous = _even(32 * width)
        self.stem = _conv(channels, previous, 3, relu6=True)
        sequences: list[nn.Module] = []
        for expand, size, blocks, stride in SEQUENCES:
            sequence = []
            for i in range(blocks):
                sequence.append(InvertedResidual(previous, _even(size * width), stride if i == 0 else 1, expand))
                previous = _even(size * width)
            sequences.append(nn.Sequential(*sequence))
        self.rows = nn.Sequential(*sequences)  # its name in checkpoints and in cuts
        last = max(_even(1280 * width), 1280)
        self.last = _conv(previous, last, 1, relu6=True)
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(last, num_classes)
        )
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.last(self.rows(self.stem(x))))


def _conv(
    channels_in: int, channels_out: int, kernel: int, stride: int = 1, *, groups: int = 1, relu6: bool = False
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU6() if relu6 else nn.ReLU(),
    )


def _even(size: float) -> int:
    """The nearest multiple of 2, at least 2."""
    return max(2, 2 * round(size / 2))


def _check(num_classes: int, channels: int, width: float) -> None:
    if min(num_classes, channels) < 1 or not width > 0:
        raise ModelError(f"num_classes {num_classes}, channels {channels}, width {width}; give positive ones")


def _initialize(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
