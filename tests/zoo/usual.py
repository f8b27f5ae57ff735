"""The shapes that classifiers usually have, small."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.making import conv


class Plain(nn.Module):
    """One convolution after the other; nothing to skip."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, 8), conv(8, 8), conv(8, 8), conv(8, 16, 2), conv(16, 16))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class ResidualBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv(channels_in, channels_out, stride)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.down = (
            nn.Identity()
            if channels_in == channels_out
            else nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.conv1(x)))
        out += self.down(x)
        return self.relu(out)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.layer1 = nn.Sequential(ResidualBlock(8, 8), ResidualBlock(8, 8))
        self.layer2 = nn.Sequential(ResidualBlock(8, 16, 2), ResidualBlock(16, 16))
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))


class UNetLike(nn.Module):
    """Two skip connections across the whole net: several live tensors in its middle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.down1 = conv(8, 8, 2)
        self.down2 = conv(8, 16, 2)
        self.middle = conv(16, 16)
        self.up1 = conv(24, 8)
        self.up2 = conv(16, 8)
        self.tail = conv(8, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.stem(x)
        half = self.down1(whole)
        deep = self.middle(self.down2(half))
        deep = self.up1(torch.cat([F.interpolate(deep, scale_factor=2.0), half], 1))
        deep = self.up2(torch.cat([F.interpolate(deep, size=whole.shape[-2:]), whole], 1))
        return self.head(self.tail(deep).mean((2, 3)))


class DenseConcat(nn.Module):
    """Every layer sees all before it; the transition between two dense parts is the only narrow place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.layers1 = nn.ModuleList(conv(8 + 4 * index, 4) for index in range(3))
        self.transition = conv(20, 8, 2)
        self.layers2 = nn.ModuleList(conv(8 + 4 * index, 4) for index in range(3))
        self.head = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers1:
            features.append(layer(torch.cat(features, 1)))
        features = [self.transition(torch.cat(features, 1))]
        for layer in self.layers2:
            features.append(layer(torch.cat(features, 1)))
        return self.head(torch.cat(features, 1).mean((2, 3)))


class TwoBranches(nn.Module):
    """Two widths side by side that look at each other: nowhere is one tensor alone live."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.thin = conv(3, 8), conv(3, 4)
        self.across = nn.ModuleList(nn.ModuleList([conv(4, 8), conv(8, 4)]) for _ in range(3))
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        wide, thin = self.wide(x), self.thin(x)
        for widen, narrow in self.across:
            wide, thin = wide + widen(thin), thin + narrow(wide)
        return self.fc(torch.cat([wide.mean((2, 3)), thin.mean((2, 3))], 1))


class AttentionBlock(nn.Module):
    """Pre-norm attention whose sizes are read from the tensor, as timm and torchvision do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, t, 3, 2, d // 2).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d)
        x = x + self.project(mixed)
        return x + self.mlp(self.norm2(x))


class ViTLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16) * 0.1)
        self.position = nn.Parameter(torch.randn(1, 5, 16) * 0.1)
        self.blocks = nn.Sequential(*(AttentionBlock(16) for _ in range(4)))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.position
        return self.head(self.norm(self.blocks(tokens))[:, 0])


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))
        self.gamma = nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x_bhwc: Tensor) -> Tensor:
        out = self.depthwise(x_bhwc.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x_bhwc + self.gamma * self.mlp(self.norm(out))


class ConvNeXtLike(nn.Module):
    """Live tensors ``[b h w c]``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 2, 2)
        self.blocks = nn.Sequential(*(ConvNeXtBlock(12) for _ in range(4)))
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x).permute(0, 2, 3, 1)).mean((1, 2))))
