"""What careless and clever code does: shared modules, in-place work, tensors on the root, decisions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.making import conv


class SharedWeights(nn.Module):
    """One module called three times, in stages of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.again = conv(8, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.again(self.again(self.stem(x)))).mean((2, 3)))


class PreActivationBlock(nn.Module):
    """Changes its own input in place and adds the changed tensor, as careless code does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.relu(x))
        out = self.conv2(F.relu(out, inplace=True))
        out += x
        out[:, 0] = 0.5
        return out.mul_(0.5)


class InPlacePreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.blocks = nn.Sequential(*(PreActivationBlock(8) for _ in range(4)))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).relu_().mean((2, 3)))


class RootTensors(nn.Module):
    """Parameters, a buffer and a plain tensor on the model itself, used in several stages; residual without modules."""

    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(n, 8, 3, 1, 1) for n in (3, 8, 8))
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.register_buffer("offset", torch.randn(8, 1, 1))
        self.weight = nn.Parameter(torch.randn(10, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x) * self.scale + self.offset
        x = x + torch.relu(self.conv2(x)) * self.scale
        x = x + torch.relu(self.conv3(x) + self.offset)
        return F.linear(x.mean((2, 3)), self.weight)


class KeptWhole(nn.Module):
    """One module that no tracer follows: it decides by what the tensor holds."""

    class Undecided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x if bool(x.isnan().all()) else self.conv(x)

    def __init__(self) -> None:
        super().__init__()
        self.first = conv(3, 8)
        self.undecided = KeptWhole.Undecided()
        self.last = conv(8, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x if mask is None else x * mask
        return self.head(self.last(self.undecided(self.first(x))).mean((2, 3)))


class ReadsSizesEarly(nn.Module):
    """The usual forward of hand-written nets: sizes read first and used last, questions about type and shape."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.heads = 3, 2
        self.stem, self.middle, self.deep = conv(3, 8), conv(8, 8), conv(8, 16, 2)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        assert h == w, f"{h} x {w}"
        also = len(x)
        if c != self.channels:
            raise ValueError(f"{c} channels, expected {self.channels}")
        if x.dtype != self.stem[0].weight.dtype:
            x = x.to(self.stem[0].weight.dtype)
        if not isinstance(x, Tensor) or x.is_cuda or x.device.type == "cuda" or x.requires_grad or x.ndim != 4:
            raise TypeError("x")
        x = self.deep(self.middle(self.stem(x)))
        x = x.view(b * self.heads, 8, -1).mean(-1).view(also, -1)
        mask = torch.ones(b, 1, dtype=x.dtype, device=x.device)
        return self.fc((x * mask).masked_fill(mask < 0, torch.finfo(x.dtype).min))
