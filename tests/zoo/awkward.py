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
            return self.conv(x) if x.shape[1] == 8 and x.dtype.is_floating_point else x

    def __init__(self) -> None:
        super().__init__()
        self.first = conv(3, 8)
        self.undecided = KeptWhole.Undecided()
        self.last = conv(8, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x if mask is None else x * mask
        return self.head(self.last(self.undecided(self.first(x))).mean((2, 3)))
